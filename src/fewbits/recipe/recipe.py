"""Recipes: which method compresses which weights, and what happens before and after.

A recipe in YAML::

    seed: 0
    raw_dtype: float16            # for tensors that are not quantized, where it is precise enough
    prepare: [fold_batchnorm]
    rules:                        # the last rule that matches a weight decides
      - match: "*"
        method: gpfq
        bits: 4
      - match: "linear"
        method: keep
    finish: [reestimate_batchnorm]
    activations:                  # optional: inputs of the quantized layers, from calibration data
      bits: 8
    train:                        # optional: train afterwards (see docs/training.md)
      method: hemp
      epochs: 20

is the same value as ``Recipe(rules=(Rule("*", GPFQ(bits=4)), Rule("linear", None)), ...)``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from os import PathLike
from pathlib import Path
from typing import Any

import yaml

from ..errors import ConfigError, SourceError, did_you_mean, require, shorten
from ..files.yaml_text import read_yaml_file
from ..methods import (
    METHODS,
    RDOQ,
    Activations,
    AnyMethod,
    TrainingMethod,
    from_settings,
    is_method,
    to_settings,
    training_methods,
    trains,
)
from ..registry import Registry
from .meant import meant
from .training_config import Training

__all__ = ["FINISH", "PREPARE", "RECIPES", "Recipe", "Rule", "check_name"]

PREPARE = ("fold_batchnorm",)
FINISH = ("reestimate_batchnorm",)
_RAW = ("keep", "float16", "bfloat16", "exact")
_WHOLE = ("seed", "raw_dtype", "calibration_rows")
_KEYS = ("rules", "prepare", "finish", "activations", "train", *_WHOLE)


@dataclass(frozen=True)
class Rule:
    """Apply ``method`` to the weights that ``match`` selects; None keeps them in float.

    ``match`` is a name of a weight or layer, a glob, a layer class, or a regular expression after
    ``re:``. ``calibration_rows`` are the input rows kept for each of these layers; None for those
    of the recipe.
    """

    match: str
    method: AnyMethod | None
    calibration_rows: int | None = None

    def __post_init__(self) -> None:
        require(isinstance(self.match, str), "match", "a pattern (a string)", self.match)
        _check_rows(self.calibration_rows)
        if self.method is not None:
            _check_method(self.method)

    def to_dict(self) -> dict[str, Any]:
        """Return the rule as written in a recipe file."""
        settings = {"method": "keep"} if self.method is None else to_settings(self.method)
        rows = self.calibration_rows
        return {
            "match": self.match,
            **settings,
            **({} if rows is None else {"calibration_rows": rows}),
        }


@dataclass(frozen=True)
class Recipe:
    """The complete description of a compression.

    Attributes:
        rules: which method compresses which weights. The last rule that matches a weight decides;
            weights that no rule matches are kept in float.
        prepare: stages applied to the float network before quantization (``fold_batchnorm``).
        finish: stages applied to the quantized network (``reestimate_batchnorm``).
        seed: random seed.
        raw_dtype: storage of tensors that are not quantized: "keep", "float16" or "bfloat16". A
            tensor of which a value would change by more than 2**-8 of itself keeps its dtype.
            "exact" keeps all, and stores those whose values lie on a grid as codes and steps.
        calibration_rows: input rows kept per layer, unless its rule says otherwise; None for 16 per
            column, at least 16384 and at most 65536.
        train: how to train, if a rule or ``train`` itself names a method that trains; None for no
            training.
        activations: how to quantize the inputs of quantized layers, from calibration data; None
            leaves them in float. Methods that train have their own settings for them.
    """

    rules: tuple[Rule, ...]
    prepare: tuple[str, ...] = ()
    finish: tuple[str, ...] = ()
    seed: int = 0
    raw_dtype: str = "keep"
    calibration_rows: int | None = None
    train: Training | None = None
    activations: Activations | None = None

    def __post_init__(self) -> None:
        sound = isinstance(self.rules, tuple) and all(isinstance(r, Rule) for r in self.rules)
        require(sound and bool(self.rules), "rules", "a tuple of fewbits.Rule", self.rules)
        for name, known in (("prepare", PREPARE), ("finish", FINISH)):
            stages = getattr(self, name)
            require(isinstance(stages, tuple), name, "a tuple of stage names", stages)
            require(len(set(stages)) == len(stages), name, "a tuple without duplicates", stages)
            for stage in stages:
                require(stage in known, f"{name} stage", f"one of {', '.join(known)}", stage)
        require(_is_whole(self.seed, 0), "seed", "an integer in [0, 2**63)", self.seed)
        require(self.raw_dtype in _RAW, "raw_dtype", f"one of {', '.join(_RAW)}", self.raw_dtype)
        _check_rows(self.calibration_rows)
        if self.activations is not None:
            object.__setattr__(self, "activations", Activations.of(self.activations))
        self._check_train()

    @classmethod
    def of(
        cls,
        method: AnyMethod | Recipe | Mapping[str, Any] | str | PathLike[str],
        calibrated: bool = True,
        begins: bool = False,
    ) -> Recipe:
        """Return a recipe, given as such, by name, as a file or mapping, or as one method.

        A method (or its name) applies to all weights. BatchNorm is then folded first if there is
        calibration data and folding only changes the size of the file (``absorbs_scales``). With
        ``begins``, a method that trains comes after the recipe that it ``starts_from``, if any.

        Raises:
            ConfigError: the name is neither that of a method nor of a recipe, or :meth:`from_file`
                or :meth:`from_dict` raises.
        """
        if isinstance(method, Recipe):
            return method
        if isinstance(method, Mapping):
            return cls.from_dict(method)
        if isinstance(method, (str, PathLike)):
            if method in RECIPES:
                return RECIPES[str(method)]
            check_name(method)
            if method not in METHODS:
                return cls.from_file(method)
            method = METHODS[str(method)]()
        _check_method(method)
        if begins and trains(method) and method.starts_from:
            return RECIPES[method.starts_from].then(method)
        folds = calibrated and not trains(method) and method.absorbs_scales
        prepare = PREPARE if folds else ()
        return cls(rules=(Rule("*", method),), prepare=prepare)

    def then(self, method: TrainingMethod) -> Recipe:
        """Return the recipe followed by a training with ``method``, by its default settings."""
        return replace(self, train=Training(method=method))

    def with_settings(self, **settings: Any) -> Recipe:
        """Return the recipe with these settings in the method of every rule.

        Raises:
            ConfigError: no rule has a method, or one has no such setting or not this value.
        """
        if settings and all(rule.method is None for rule in self.rules):
            raise ConfigError(
                f"the recipe quantizes nothing, so no method has the settings "
                f"{', '.join(settings)}. Leave them out, or choose a method."
            )
        return replace(self, rules=tuple(_with_settings(rule, settings) for rule in self.rules))

    @property
    def lossless(self) -> bool:
        """Whether every tensor comes back bit for bit, whatever its values."""
        changes = self.prepare or self.finish or self.train or self.activations
        kept = all(rule.method is None for rule in self.rules)
        return kept and not changes and self.raw_dtype in ("keep", "exact")

    @property
    def first_stage(self) -> Recipe | None:
        """The part without training: the whole recipe, the start of training, or None."""
        if any(trains(rule.method) for rule in self.rules):
            return None
        return replace(self, train=None)

    @property
    def training_stage(self) -> Recipe | None:
        """The part that trains, with its method in the rules; None if nothing is trained."""
        if self.train is not None and self.train.method is not None:
            rules = (replace(r, method=r.method and self.train.method) for r in self.rules)
            settings = replace(self.train, method=None)
            return replace(self, rules=tuple(rules), prepare=(), finish=(), train=settings)
        return self if self.first_stage is None else None

    def _check_train(self) -> None:
        require(
            self.train is None or isinstance(self.train, Training),
            "train",
            "a fewbits.Training, or None",
            self.train,
        )
        rules_train = any(trains(rule.method) for rule in self.rules)
        if self.activations is not None and (rules_train or self.train is not None):
            raise ConfigError(
                "'activations' cannot be combined with training: they are calibrated after the "
                "weights are quantized. Use the method's own settings, such as 'activations' of "
                "lowbit."
            )
        if self.train is None:
            return
        if rules_train == (self.train.method is not None):
            raise ConfigError(
                "a recipe with 'train' must name a method that trains "
                f"({', '.join(training_methods())}) either in 'train' or in the rules. It names "
                + (
                    "one in both: remove one of them."
                    if rules_train
                    else "none: add 'method: ...' to 'train'."
                )
            )

    @classmethod
    def from_file(cls, path: str | PathLike[str]) -> Recipe:
        """Read a YAML recipe.

        Raises:
            SourceError: the file cannot be read or is not YAML.
            ConfigError: the file is not a recipe, repeats a key, or holds values that ``read_yaml``
                refuses; the message names file and key.
        """
        try:
            return cls.from_dict(read_yaml_file(path))
        except (ConfigError, SourceError) as error:
            raise type(error)(f"recipe {str(path)!r}: {error}") from None

    @classmethod
    def from_dict(cls, data: Any) -> Recipe:
        """Build a recipe from plain values, as parsed from YAML. Unknown keys raise an error."""
        if not isinstance(data, Mapping):
            raise ConfigError(
                f"a recipe must be a mapping with 'rules'. Got {shorten(data)} instead."
            )
        _check_keys(data, _KEYS, "recipe")
        rules = data.get("rules")
        if not isinstance(rules, list) or not rules:
            raise ConfigError(f"'rules' must be a list of rules. Got {shorten(rules)} instead.")
        fields: dict[str, Any] = {key: data[key] for key in _WHOLE if key in data}
        return cls(
            tuple(_rule(i, entry) for i, entry in enumerate(rules)),
            prepare=_stages("prepare", data.get("prepare")),
            finish=_stages("finish", data.get("finish")),
            train=None if data.get("train") is None else Training.from_dict(data["train"]),
            activations=data.get("activations"),
            **fields,
        )

    def to_dict(self) -> dict[str, Any]:
        """Return plain values that :meth:`from_dict` accepts; defaults are left out."""
        data: dict[str, Any] = {"rules": [rule.to_dict() for rule in self.rules]}
        for key in ("prepare", "finish"):
            if getattr(self, key):
                data[key] = list(getattr(self, key))
        if self.activations is not None:
            data["activations"] = self.activations.to_dict()
        if self.train is not None:
            data["train"] = self.train.to_dict()
        defaults = {"seed": 0, "raw_dtype": "keep", "calibration_rows": None}
        return data | {k: getattr(self, k) for k, v in defaults.items() if getattr(self, k) != v}

    def to_yaml(self) -> str:
        """Return the recipe as a YAML document."""
        return yaml.safe_dump(self.to_dict(), sort_keys=False)


def _with_settings(rule: Rule, settings: Mapping[str, Any]) -> Rule:
    if rule.method is None:
        return rule
    return replace(rule, method=from_settings({**to_settings(rule.method), **settings}))


def _is_whole(value: object, least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and least <= value < 2**63


def _check_rows(rows: object) -> None:
    sound = rows is None or _is_whole(rows, 1)
    require(sound, "calibration_rows", "an integer > 0, or None", rows)


def _check_method(method: object) -> None:
    if not is_method(method):
        raise ConfigError(
            "method must be a method such as fewbits.GPFQ(bits=4), a fewbits.Recipe, or the "
            f"path of a recipe file. Got {shorten(method)} instead." + _hint(method)
        )


def _hint(method: object) -> str:
    """Return what a value that is no method was meant to be."""
    if isinstance(method, type) and method in METHODS.ready():
        return f" Make one of the class: {method.__name__}()."
    other = None if isinstance(method, (type, bool)) else meant(method)
    return "" if other is None else other.code


def check_name(name: str | PathLike[str]) -> None:
    """Refuse a bare word that is no method, recipe or file: it was not meant as a path.

    Raises:
        ConfigError: lists the methods and recipes, and says what may have been meant.
    """
    bare = isinstance(name, str) and not Path(name).suffix and name == Path(name).name
    if bare and name not in METHODS and name not in RECIPES and not Path(name).exists():
        known, other = [*METHODS, *RECIPES], meant(name)
        raise ConfigError(
            f"unknown method or recipe {shorten(name)}. Methods: {', '.join(METHODS)}. Recipes: "
            f"{', '.join(RECIPES)}, or the path of a recipe file."
            + (did_you_mean(str(name), known) if other is None else other.code)
        )


def _check_keys(data: Mapping[Any, Any], known: tuple[str, ...], what: str) -> None:
    for key in data:
        if key not in known:
            raise ConfigError(
                f"unknown key {shorten(key)} in the {what}. Valid keys: {', '.join(known)}."
                + did_you_mean(str(key), known)
            )


def _stages(key: str, value: Any) -> tuple[str, ...]:
    if value is None:
        return ()
    if not isinstance(value, list) or not all(isinstance(stage, str) for stage in value):
        raise ConfigError(f"{key!r} must be a list of stage names. Got {shorten(value)} instead.")
    return tuple(value)


def _rule(position: int, entry: Any) -> Rule:
    where = f"rule {position + 1}"
    if not isinstance(entry, Mapping) or not isinstance(entry.get("match"), str):
        raise ConfigError(
            f"{where} must be a mapping with 'match: PATTERN'. Got {shorten(entry)} instead."
        )
    own = ("match", "calibration_rows")
    settings = {key: value for key, value in entry.items() if key not in own}
    if settings.get("method") == "keep":
        _check_keys(settings, ("method",), f"{where} (keep takes no settings)")
        return Rule(entry["match"], None)
    try:
        return Rule(entry["match"], from_settings(settings), entry.get("calibration_rows"))
    except ConfigError as error:
        raise ConfigError(f"{where} (match: {shorten(entry['match'])}): {error}") from None


RECIPES: Registry[Recipe] = Registry("recipe")
RECIPES.register("smallest")(
    Recipe((Rule("*", RDOQ()),), prepare=("fold_batchnorm",), raw_dtype="float16")
)
RECIPES.register("lossless")(Recipe((Rule("*", None),), raw_dtype="exact"))
