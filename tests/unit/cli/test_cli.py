"""Every verb on a small network: what it prints, its JSON, and its exit codes."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from safetensors.torch import load_file, save_file

import fewbits
from cli_runs import one_line_error, run, run_json
from fewbits.cli.jobs import demo as showcase
from fewbits.container import read
from fewbits.methods import METHODS, post_training_methods
from fewbits.sources import load_data, load_model
from fewbits.sources.demo_network import train_classifier

VERBS = (
    "demo",
    "compress",
    "train",
    "evaluate",
    "inspect",
    "decode",
    "methods",
    "sweep",
    "sensitivity",
)
MODEL = "builtin:digits-mlp"
EXAMPLES = Path(__file__).parents[3] / "examples"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Return a folder with a trained checkpoint and the file made of it."""
    made = tmp_path_factory.mktemp("cli")
    model = train_classifier(load_model(MODEL).module, load_data("digits"), epochs=12)
    save_file(model.state_dict(), made / "net.safetensors")
    coded = fewbits.compress(model, fewbits.Nearest(bits=6), source=MODEL)
    coded.save(made / "net.fewbits", "smallest")
    return made


@pytest.fixture
def here(folder, tmp_path, monkeypatch):
    """Work in a fresh folder that holds the checkpoint and the file."""
    for name in ("net.safetensors", "net.fewbits"):
        shutil.copy(folder / name, tmp_path / name)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    return tmp_path


# the whole


def test_no_arguments_show_help():
    assert all(verb in run().stdout for verb in VERBS)


def test_version():
    assert run("--version").stdout == f"fewbits {fewbits.__version__}\n"


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_help_with_an_example_and_json(verb):
    text = run(verb, "--help").stdout
    assert f"Example: fewbits {verb}" in text
    assert "--json" in text


@pytest.mark.parametrize(
    ("verb", "said"),
    [
        ("demo", "with every method that needs no training"),
        ("compress", "qronos; with a budget, the recipe smallest"),
        ("compress", "[default: the method's, 4]"),
        ("compress", "digits, npz:FILE, text:FILE, idx:FOLDER, folder:PATH, datasets:NAME or"),
        ("compress", "timm:NAME or torchvision:NAME"),
        ("compress", "Threads to encode tensors with"),
        ("decode", "Threads to decode tensors with"),
        ("evaluate", "Threads to decode tensors with"),
        ("train", "[default: 16-bit floats]"),
        ("train", "Consider only the epochs after this share of the training"),
        ("train", "Keep the epoch with the fewest bits among those that lose at most this much"),
        ("sweep", "qronos needs --bits"),
    ],
)
def test_help_says_what_happens(verb, said, monkeypatch):
    monkeypatch.setenv("COLUMNS", "400")
    assert said in " ".join(run(verb, "--help").stdout.split())


def test_an_unknown_verb_is_a_usage_error():
    assert run("compres", code=2).stdout == ""


def test_help_and_inspect_need_no_torch(folder):
    code = (
        "import sys; from typer.testing import CliRunner; from fewbits.cli.app import app\n"
        "for args in (['--help'], ['inspect', sys.argv[1]], ['inspect', sys.argv[1], '--json']):\n"
        "    assert CliRunner().invoke(app, args).exit_code == 0\n"
        "assert 'torch' not in sys.modules and 'sklearn' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code, folder / "net.fewbits"], check=True)


def test_the_entry_point_exits_with_the_code(folder):
    args = [sys.executable, "-m", "fewbits", "inspect"]
    done = subprocess.run([*args, "nowhere.fewbits"], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stdout == ""
    assert "nowhere.fewbits" in done.stderr
    assert "Traceback" not in done.stderr
    subprocess.run([*args, folder / "net.fewbits"], check=True, capture_output=True)


def test_interrupted(monkeypatch, here):
    def stop(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr("fewbits.cli.jobs.compress.load_model", stop)
    arguments = ("compress", MODEL, "--method", "nearest", "-o", "new.fewbits")
    assert "interrupted" in run(*arguments, code=130).stderr
    assert run_json(*arguments, code=130)["error"]["type"] == "KeyboardInterrupt"


# compress

COMPRESS = ("compress", MODEL, "--weights", "net.safetensors", "--data", "digits")


def test_compress_and_evaluate(here):
    result = run(*COMPRESS, "--bits", 4, "-o", "new.fewbits", "--evaluate")
    size = (here / "new.fewbits").stat().st_size
    assert result.stdout.startswith(f"new.fewbits: {size:,} bytes, ")
    assert "float32:    accuracy 9" in result.stdout
    assert "compressed: accuracy 9" in result.stdout


def test_steps_for_groups(here):
    command = [*COMPRESS, "--bits", 4, "--group", 48, "--dry-run"]
    plan = run_json(*command)["plan"]
    assert plan["recipe"]["rules"][0] == {"match": "*", "method": "qronos", "bits": 4, "group": 48}
    assert "no multiple of group=48" in run(*command).stdout
    assert "group must be" in run(*COMPRESS, "--group", 4, "--dry-run", code=2).stderr


def test_compress_json_says_everything(here):
    found = run_json(*COMPRESS, "--bits", 3, "--set", "radius=mse", "-o", "n.fewbits", "--evaluate")
    assert found["bytes"] == (here / "n.fewbits").stat().st_size == found["size"]["file_bytes"]
    rule = found["plan"]["recipe"]["rules"][0]
    assert rule == {"match": "*", "method": "qronos", "bits": 3, "radius": "mse"}
    assert found["accuracy"]["float32"]["samples"] == 449
    info = fewbits.inspect(here / "n.fewbits")
    assert info.metadata["source"] == MODEL


def test_recipe_and_source_can_be_left_out(here):
    run(*COMPRESS, "--bits", 3, "--no-metadata", "-o", "n.fewbits")
    assert fewbits.inspect(here / "n.fewbits").metadata == {}


def test_the_same_seed_gives_the_same_file(here):
    settings = ("--method", "gpfq", "--set", "rounding=stochastic", "--calibration-samples", 300)
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        run(*COMPRESS, *settings, "--seed", seed, "-o", f"{name}.fewbits")
    a, b, c = ((here / f"{name}.fewbits").read_bytes() for name in "abc")
    assert a == b
    assert a != c


def test_calibration_is_limited_drawn_by_the_seed_and_never_test_data(here, monkeypatch):
    seen = []

    def spy(model, method, calibration=None, **settings):
        seen.append(torch.cat([inputs for inputs, _ in calibration]))
        return real(model, method, calibration, **settings)

    real = fewbits.compress
    monkeypatch.setattr("fewbits.cli.jobs.compress.api.compress", spy)
    for seed in (0, 1):
        run(*COMPRESS, "--seed", seed, "--calibration-samples", 200, "-o", f"{seed}.fewbits")
    data = load_data("digits")
    train, test = ({x.numpy().tobytes() for x in s.inputs} for s in (data.train, data.test))
    for inputs in seen:
        assert inputs.shape == (200, 1, 8, 8)
        pixels = ((inputs * 0.376 + 0.305) * 16).round().to(torch.uint8)
        found = {x.numpy().tobytes() for x in pixels}
        assert found <= train
        assert not found & test
    assert not torch.equal(seen[0], seen[1])


def test_a_dry_run_prints_the_plan_and_writes_nothing(here):
    text = run("compress", MODEL, "--dry-run", "-o", "new.fewbits").stdout
    assert "1.weight" in text
    assert "qronos" in text
    assert "biases are kept" in text
    assert "3 of 6 tensors are quantized" in text
    assert not (here / "new.fewbits").exists()
    plan = run_json("compress", MODEL, "--dry-run")["plan"]
    assert [entry["name"] for entry in plan["weights"]] == ["1.weight", "3.weight", "5.weight"]


def test_a_method_without_needs_goes_without_data(here):
    run("compress", MODEL, "--method", "nearest", "-o", "new.fewbits")
    assert (here / "new.fewbits").exists()


def test_an_existing_file_is_kept_unless_forced(here):
    before = (here / "net.fewbits").read_bytes()
    assert "--force" in one_line_error(*COMPRESS, "-o", "net.fewbits")
    assert (here / "net.fewbits").read_bytes() == before
    run(*COMPRESS, "--bits", 2, "-o", "net.fewbits", "--force")
    assert (here / "net.fewbits").read_bytes() != before
    assert "does not exist" in one_line_error(*COMPRESS, "-o", "nowhere/net.fewbits")
    assert "is a folder" in one_line_error(*COMPRESS, "-o", here)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--recipe", "nowhere.yaml"], "nowhere.yaml"),
        (["--data", "digit"], "Did you mean 'digits'"),
        (["--weights", "nowhere.pt"], "do not exist"),
    ],
)
def test_what_compress_refuses(here, arguments, message):
    assert message in one_line_error(*COMPRESS, *arguments, "-o", "new.fewbits")
    assert not (here / "new.fewbits").exists()
    found = run_json(*COMPRESS, *arguments, "-o", "new.fewbits", code=1)
    assert message in found["error"]["message"]
    assert found["error"]["type"].endswith("Error")


@pytest.mark.parametrize(
    "arguments",
    [
        ["--data", "digits"],
        ["-o", "n.fewbits"],
        ["-o", "n.fewbits", "--method", "nearest", "--evaluate"],
        ["-o", "n.fewbits", "--data", "digits", "--recipe", "r.yaml", "--bits", "3"],
        ["-o", "n.fewbits", "--data", "digits", "--set", "radius"],
        ["-o", "n.fewbits", "--data", "digits", "--set", "method=gptq"],
        ["-o", "n.fewbits", "--data", "digits", "--set", "clip=[1"],
        ["-o", "n.fewbits", "--data", "digits", "--bits", "3", "--set", "bits=4"],
        ["-o", "n.fewbits", "--data", "digits", "--group", "32", "--set", "group=64"],
        ["-o", "n.fewbits", "--data", "digits", "--recipe", "r.yaml", "--group", "32"],
        ["-o", "n.fewbits", "--data", "digits", "--batch-size", "0"],
        ["-o", "n.fewbits", "--bits", "x"],
        ["-o", "n.fewbits", "--seed", "-3"],
        ["-o", "n.fewbits", "--colour", "red"],
    ],
)
def test_wrong_usage_has_its_own_code(here, arguments):
    result = run("compress", MODEL, *arguments, code=2)
    assert result.stdout == ""
    assert run_json("compress", MODEL, *arguments, code=2)["error"]["type"] == "UsageError"


def test_own_code_may_print_without_spoiling_json(here):
    (here / "chatty_net.py").write_text(
        "import torch\nprint('hello')\n"
        "def build():\n  print('building')\n  return torch.nn.Linear(4, 3)\n"
        "def loaders():\n"
        "  return [(torch.ones(8, 4), torch.zeros(8).long())] * 2\n"
    )
    arguments = ("compress", "chatty_net:build", "--data", "chatty_net:loaders", "-o", "c.fewbits")
    result = run(*arguments, "--json")
    assert json.loads(result.stdout)["file"] == "c.fewbits"
    assert "building" in result.stderr
    judged = run(*arguments[:-1], "d.fewbits", "--evaluate", code=1)
    assert "error: data 'chatty_net:loaders' is a single loader" in judged.stderr


def test_the_example_with_a_recipe(here):
    for name in ("mynet.py", "recipe.yaml"):
        shutil.copy(EXAMPLES / name, here / name)
    data = ("--data", "mynet:loaders")
    found = run_json("compress", "mynet:build", *data, "--recipe", "recipe.yaml", "-o", "m.fewbits")
    bits = {entry["name"]: entry["method"]["bits"] for entry in found["plan"]["weights"]}
    assert bits == {"0.weight": 4, "2.weight": 4, "5.weight": 3}
    assert run_json("evaluate", "m.fewbits", *data)["model"] == "mynet:build"


# evaluate


def test_evaluate_in_the_transform_domain(here):
    settings = ("--method", "transform", "--set", "slope=1e-3", "--set", "side=row")
    run(*COMPRESS, *settings, "-o", "t.fewbits")
    plain = run_json("evaluate", "t.fewbits", "--data", "digits")
    found = run_json("evaluate", "t.fewbits", "--data", "digits", "--transform-domain")
    assert found["accuracy"] == plain["accuracy"]
    assert found["multiplications"]["pairs"] != found["multiplications"]["layers"]
    told = run("evaluate", "t.fewbits", "--data", "digits", "--transform-domain").stdout
    assert "of the multiplications" in told


def test_evaluate_with_the_weights_left_in_the_file(here, monkeypatch):
    from fewbits.engine.network import filling

    monkeypatch.setattr(filling, "SMALL_BYTES", 64)
    plain = run_json("evaluate", "net.fewbits", "--data", "digits")
    found = run_json("evaluate", "net.fewbits", "--data", "digits", "--lazy")
    assert found | {"seconds": 0} == plain | {"seconds": 0}
    for other in (("--weight-noise", "0.1"), ("--transform-domain",)):
        run("evaluate", "net.fewbits", "--data", "digits", "--lazy", *other, code=2)


def test_evaluate_uses_the_source_in_the_file(here):
    found = run_json("evaluate", "net.fewbits", "--data", "digits")
    model = fewbits.load("net.fewbits", into=load_model(MODEL).module)
    data = load_data("digits").test
    right = (model(data.normalization(data.inputs)).argmax(1) == data.labels).float().mean()
    assert found["accuracy"] == pytest.approx(float(right))
    assert found["samples"] == 449
    assert found["model"] == MODEL
    assert "accuracy 9" in run("evaluate", "net.fewbits", "--data", "digits").stdout


@pytest.mark.parametrize(("wanted", "code"), [("50%", 0), ("0.5", 0), ("1", 3), ("99.99%", 3)])
def test_an_accuracy_that_is_not_met_has_its_own_code(here, wanted, code):
    arguments = ("evaluate", "net.fewbits", "--data", "digits", "--min-accuracy", wanted)
    assert run_json(*arguments, code=code)["met"] is (code == 0)
    assert ("below" if code else "at least") in run(*arguments, code=code).stdout


@pytest.mark.parametrize("wanted", ["97", "-1", "high", "101%", "nan"])
def test_an_accuracy_out_of_range_is_wrong_usage(here, wanted):
    run("evaluate", "net.fewbits", "--data", "digits", "--min-accuracy", wanted, code=2)


def test_a_file_cannot_have_foreign_code_called(here):
    model = load_model(MODEL).module
    for source in ("os:abort", "sys:exit", "mynet:os.abort", "subprocess:run"):
        fewbits.compress(model, fewbits.Nearest(), source=source).save("foreign.fewbits")
        message = one_line_error("evaluate", "foreign.fewbits", "--data", "digits")
        assert f"--model {source}" in message
    fewbits.compress(model, fewbits.Nearest()).save("nameless.fewbits")
    assert "Add --model SOURCE" in one_line_error(
        "evaluate", "nameless.fewbits", "--data", "digits"
    )
    run("evaluate", "nameless.fewbits", "--data", "digits", "--model", MODEL)


def test_evaluate_on_another_network_or_damaged_file(here):
    arguments = ("evaluate", "net.fewbits", "--data", "digits", "--model", "builtin:digits-cnn")
    assert "another architecture" in one_line_error(*arguments)
    (here / "net.fewbits").write_bytes(b"nonsense")
    found = run_json("evaluate", "net.fewbits", "--data", "digits", code=1)
    assert found["error"]["type"] == "CorruptFileError"


# inspect


def test_inspect_adds_up(here):
    size = (here / "net.fewbits").stat().st_size
    found = run_json("inspect", "net.fewbits")
    assert found["size"]["file_bytes"] == size
    assert sum(row["bytes"] for row in found["size"]["rows"]) == size
    text = run("inspect", "net.fewbits").stdout
    lines = text.splitlines()
    body = lines[2 : next(k for k, line in enumerate(lines) if line.startswith("total"))]
    assert sum(int(line.split()[-1].replace(",", "")) for line in body) == size
    assert f"source: {MODEL}" in text


def test_inspect_shows_ties_and_activations_without_control_characters(here):
    import numpy as np

    from fewbits.coded import ActivationGrid, Contents, RawTensor
    from fewbits.container import encode

    tensor = RawTensor((2,), "uint8", np.zeros(2, np.uint8))
    contents = Contents(
        {"a": tensor}, {"b": "a"}, {"layer": ActivationGrid(4, 1.5, False)}, {"note": "x\x1b[2Jy"}
    )
    Path("tied.fewbits").write_bytes(encode(contents))
    text = run("inspect", "tied.fewbits").stdout
    assert "b is the same tensor as a" in text
    assert "input of layer: 4 bits, unsigned, clip 1.5" in text
    assert "\x1b" not in text


def test_an_effort_that_does_not_exist(here):
    assert "fast, balanced, smallest" in run(
        "compress", MODEL, "--dry-run", "--effort", "most", code=2
    ).stderr.replace("\n", " ")


def test_inspect_shows_entropies_next_to_what_is_coded(here):
    found = run_json("inspect", "net.fewbits", "--entropy")
    wanted = fewbits.inspect("net.fewbits").report
    rows = {row["name"]: row for row in found["entropy"]}
    assert rows.keys() == {row.name for row in wanted.rows if row.kind == "grid"}
    for row in rows.values():
        zero, one, two = row["entropies"]
        assert row["levels"] >= 2**zero - 1e-9
        assert zero >= one >= two >= 0
    text = run("inspect", "net.fewbits", "--entropy").stdout
    codecs = {row.codecs for row in wanted.rows if row.kind == "grid"}
    assert all(word in text for word in ("order 0", "order 2", *codecs))


@pytest.mark.parametrize("threads", [0, 1, 2])
def test_threads_change_nothing(here, threads):
    run("decode", "net.fewbits", "-o", "out.pt", "--threads", threads, "--force")
    found = torch.load(here / "out.pt")
    wanted = fewbits.load(here / "net.fewbits")
    assert all(torch.equal(found[name], value) for name, value in wanted.items())
    judged = [
        run_json("evaluate", "net.fewbits", "--data", "digits", "--threads", number)
        for number in (1, threads)
    ]
    assert judged[0]["accuracy"] == judged[1]["accuracy"]
    options = (MODEL, "--weights", "net.safetensors", "--method", "nearest", "--force")
    for name, number in (("one", 1), ("several", threads)):
        run("compress", *options, "-o", f"{name}.fewbits", "--threads", number)
    assert (here / "one.fewbits").read_bytes() == (here / "several.fewbits").read_bytes()


def test_inspect_shows_a_histogram(here):
    name = run_json("inspect", "net.fewbits", "--entropy")["entropy"][0]["name"]
    found = run_json("inspect", "net.fewbits", "--tensor", name)
    sizes = {row["name"]: row["elements"] for row in found["size"]["rows"]}
    assert sum(found["histogram"].values()) == sizes[name]
    assert "####" in run("inspect", "net.fewbits", "--tensor", name).stdout
    assert "no quantized tensor" in one_line_error("inspect", "net.fewbits", "--tensor", "nothing")


def test_inspect_of_what_is_no_file(here):
    assert "nowhere.fewbits" in one_line_error("inspect", "nowhere.fewbits")
    (here / "bad.fewbits").write_bytes(b"")
    assert "bad.fewbits" in one_line_error("inspect", "bad.fewbits")
    found = run_json("inspect", "bad.fewbits", code=1)
    assert found["error"]["type"] == "CorruptFileError"


# decode


@pytest.mark.parametrize("name", ["out.safetensors", "out.pt"])
def test_decode_writes_a_plain_state_dict(here, name):
    found = run_json("decode", "net.fewbits", "-o", name)
    assert found["bytes"] == (here / name).stat().st_size
    state = load_file(name) if name.endswith("s") else torch.load(name, weights_only=True)
    wanted = fewbits.load("net.fewbits")
    assert state.keys() == wanted.keys()
    assert all(torch.equal(state[key], wanted[key]) for key in wanted)
    load_model(MODEL, name)


def test_decode_of_tied_tensors(here):
    class Tied(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.a = torch.nn.Linear(4, 4)
            self.b = torch.nn.Linear(4, 4)
            self.b.weight = self.a.weight

    fewbits.compress(Tied(), fewbits.Nearest()).save("tied.fewbits")
    told = run_json("decode", "tied.fewbits", "-o", "tied.safetensors")
    assert told["tied"] == {"b.weight": "a.weight"}
    state = load_file("tied.safetensors")
    assert set(state) == {"a.weight", "a.bias", "b.bias"}
    safetensors.torch.load_model(Tied(), "tied.safetensors")  # ties again, and is content
    line = run("decode", "tied.fewbits", "-o", "tied.safetensors", "--force").stdout
    assert "tied weights are written once: b.weight = a.weight" in line
    run("decode", "tied.fewbits", "-o", "all.safetensors", "--all-names")
    state = load_file("all.safetensors")
    assert torch.equal(state["a.weight"], state["b.weight"])
    run("decode", "tied.fewbits", "-o", "tied.pt")
    state = torch.load("tied.pt", weights_only=True)
    assert state["a.weight"].data_ptr() == state["b.weight"].data_ptr()
    Tied().load_state_dict(state)


def test_decode_refuses(here):
    assert "must end in" in one_line_error("decode", "net.fewbits", "-o", "out.onnx")
    assert "--force" in one_line_error("decode", "net.fewbits", "-o", "net.safetensors")
    run("decode", "net.fewbits", "-o", "net.safetensors", "--force")
    assert "nowhere" in one_line_error("decode", "nowhere.fewbits", "-o", "o.pt")


# methods


def test_methods_are_the_registry():
    found = run_json("methods")["methods"]
    assert [entry["name"] for entry in found] == [*METHODS]
    assert found[0]["settings"]["bits"] == 4
    text = run("methods").stdout
    assert all(entry["summary"] in text and entry["paper"] in text for entry in found)


@pytest.mark.parametrize("name", [*METHODS])
def test_one_method_tells_all(name):
    text = run("methods", name).stdout
    found = run_json("methods", name)
    assert set(found["meanings"]) == set(found["settings"])
    for setting, meaning in found["meanings"].items():
        assert setting in text
        assert meaning in text


def test_an_unknown_method_names_the_nearest():
    assert "Did you mean 'nearest'" in run_json("methods", "nearst", code=2)["error"]["message"]


# demo


def test_demo_compresses_with_every_method(here, monkeypatch):
    def short(model, data, *, seed, progress):
        return train_classifier(model, data, epochs=1, seed=seed, progress=progress)

    monkeypatch.setattr(showcase, "train_classifier", short)
    monkeypatch.setattr(showcase, "CALIBRATION", 128)
    monkeypatch.setattr(showcase, "WIDTHS", (4,))
    found = run_json("demo", "--out", "shown")
    rows = found["rows"]
    assert {row["method"] for row in rows} == {"float32", *post_training_methods()}
    for row in rows:
        assert row["bytes"] == (here / "shown" / row["file"]).stat().st_size
    judged = run_json("evaluate", f"shown/{rows[1]['file']}", "--data", "digits")
    assert judged["accuracy"] == rows[1]["accuracy"]


@pytest.mark.slow
def test_demo_reaches_what_it_promises(here):
    result = run("demo")
    assert result.stdout.splitlines()[1].startswith("float32")
    rows = {(r["method"], r["bits"]): r for r in run_json("demo")["rows"]}
    exact = rows["float32", None]["accuracy"]
    assert exact >= 0.98
    assert rows["gpfq", 4]["accuracy"] >= exact - 0.01
    assert rows["gpfq", 4]["ratio"] > 8
    assert rows["gpfq", 2]["accuracy"] > rows["nearest", 2]["accuracy"]


@pytest.mark.parametrize(
    ("name", "dtype", "told"),
    [("__metadata__", torch.float32, "'__metadata__'"), ("x", torch.complex128, "complex128")],
)
def test_decode_to_safetensors_refuses_what_it_would_not_give_back(here, name, dtype, told):
    network = torch.nn.Linear(4, 4)
    network.register_buffer(name, torch.ones(3, dtype=dtype))
    fewbits.compress(network, fewbits.Nearest()).save("odd.fewbits")
    error = one_line_error("decode", "odd.fewbits", "-o", "odd.safetensors")
    assert told in error
    assert ".pt" in error
    assert not Path("odd.safetensors").exists()
    run("decode", "odd.fewbits", "-o", "odd.pt")
    state = torch.load("odd.pt", weights_only=True)
    assert torch.equal(state[name], torch.ones(3, dtype=dtype))


def test_a_file_of_a_wrapped_network_is_evaluated_and_counted_like_another(here):
    network = load_model(MODEL, "net.safetensors").module
    wrapped = torch.nn.DataParallel(network)
    fewbits.compress(wrapped, fewbits.Nearest(bits=6), source=MODEL).save("wrapped.fewbits")
    plain, other = (
        run_json("evaluate", f, "--data", "digits") for f in ("net.fewbits", "wrapped.fewbits")
    )
    assert plain["accuracy"] == other["accuracy"]
    plain, other = (
        run_json("inspect", f, "--energy", "--data", "digits")["energy"]
        for f in ("net.fewbits", "wrapped.fewbits")
    )
    assert len(plain["layers"]) == len(other["layers"]) > 0


def test_compress_onto_the_levels_of_a_file(here):
    common = ("compress", MODEL, "--weights", "net.safetensors", "--data", "digits")
    plan = run_json(*common, "--method", "gptq", "--start", "net.fewbits", "--dry-run")["plan"]
    assert all(w["reason"] == "on the levels of the start" for w in plan["weights"])
    done = run_json(*common, "--method", "gptq", "--start", "net.fewbits", "-o", "new.fewbits")
    assert any("are on its levels" in note for note in done["notes"])
    before, after = (read(file).tensors for file in ("net.fewbits", "new.fewbits"))
    names = [w["name"] for w in plan["weights"]]
    assert all(np.array_equal(before[n].step, after[n].step) for n in names)
    assert any(not np.array_equal(before[n].index, after[n].index) for n in names)
    wrong = ("--method", "transform", "--start", "net.fewbits", "-o", "other.fewbits")
    assert "chooses its own" in one_line_error(*common, *wrong)
    wrong = ("--epochs", "1", "--start", "net.fewbits", "-o", "other.fewbits")
    assert "is where a training begins" in run(*common, *wrong, code=2).stderr
