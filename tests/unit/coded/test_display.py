"""What objects show of themselves: a few lines whatever the network, and tables for notebooks."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import nn

import fewbits
from fewbits import GPFQ, HEMP, LowBit, Nearest
from fewbits.errors import CoverageWarning, FewbitsWarning
from fewbits.search import Trace
from fewbits.search.trace import Trial


class Table(nn.Module):
    """Most of it is a parameter of its own, which no layer kind takes."""

    def __init__(self, rows=90):
        super().__init__()
        self.table = nn.Parameter(torch.randn(rows, 10))
        self.layer = nn.Linear(10, 8)

    def forward(self, inputs):
        return self.layer(inputs @ self.table.T @ self.table)


class Named(nn.Module):
    def __init__(self, *names):
        super().__init__()
        for name in names:
            self.add_module(name, nn.Linear(6, 6))


def wide(count=100):
    return nn.Sequential(*(nn.Linear(4, 4) for _ in range(count)))


def everything(net, tmp_path):
    coded = fewbits.compress(net, Nearest(bits=4))
    coded.save(tmp_path / "net.fewbits", effort="fast")
    trace = Trace({"kind": "target_bytes", "limit": 9.0}, trials=[Trial(0.1, 9, 2.0)] * 400)
    report, info = coded.size_report(), fewbits.inspect(tmp_path / "net.fewbits")
    tuner = fewbits.prepare(net, HEMP())
    return [coded, coded.plan, report, info, tuner, trace, coded.contents]


def test_representations_are_a_few_lines(tmp_path):
    for shown in everything(wide(), tmp_path):
        assert len(repr(shown)) < 500, type(shown)
        assert repr(shown).count("\n") <= 2
    coded = fewbits.compress(wide(), Nearest(bits=4))
    assert len(str(coded)) < 500
    assert "not encoded yet" in str(coded)
    size = len(coded.data)
    assert f"{size:,} bytes" in str(coded)


@pytest.mark.parametrize(
    "name", ["x" * 900, "<img src=x onerror=alert(1)>", "a\x1b[2J", "b\n" * 200]
)
def test_names_do_no_harm(name, tmp_path):
    for shown in everything(Named(name, "plain"), tmp_path):
        assert len(repr(shown)) < 700, type(shown)
        assert "\x1b" not in repr(shown)
        assert repr(shown).count("\n") <= 2
        table = getattr(shown, "_repr_html_", str)()
        assert "<img" not in table
        assert "\x1b" not in table


def test_whole_listings_are_there_by_name(tmp_path):
    coded, plan, report, info, tuner, trace, _ = everything(wide(40), tmp_path)
    for lines in (str(plan), str(tuner.plan), str(report), str(info.report)):
        assert all(f"{k}.weight" in lines for k in range(40))
        assert all(f"{k}.bias" in lines for k in range(40))
    assert len(str(trace).splitlines()) == 401
    for shown in (coded, plan, report, info, tuner):
        assert "39.weight" in shown._repr_html_()
    assert "biases are kept" in coded._repr_html_()
    assert trace._repr_html_().count("<tr>") == 401


def test_all_tell_the_share_and_the_largest_left_with_its_reason(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", CoverageWarning)
        shown = everything(Table(), tmp_path)
    for one in (*shown[:4], shown[4].plan, shown[4]):
        assert "8.0% of 988 weights quantized" in repr(one)
        assert "largest left in float table (900)" in repr(one)
        assert "no layer kind takes Table" in repr(one)
    assert str(shown[2]).splitlines()[-1].endswith("no layer kind takes Table")


@pytest.mark.parametrize(
    ("method", "net", "reason"),
    [
        (Nearest(bits=4), Table(), "no layer kind takes Table"),
        (
            fewbits.Recipe((fewbits.Rule("*", Nearest(bits=4)), fewbits.Rule("1", None))),
            nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 90)),
            "kept by rule '1'",
        ),
    ],
)
def test_compress_warns_below_half(method, net, reason):
    with pytest.warns(CoverageWarning, match=f"less than half.*{reason}") as heard:
        fewbits.compress(net, method)
    assert len(heard) == 1
    assert heard[0].filename == __file__
    assert issubclass(CoverageWarning, FewbitsWarning)


def test_the_end_of_a_training_warns_too():
    tuner = fewbits.prepare(Table(), HEMP())
    with pytest.warns(CoverageWarning, match="8.0% of 988"):
        tuner.finish()
    net = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4))
    inputs = LowBit(weights=32, activations=8)
    tuner = fewbits.prepare(net, inputs, calibration=torch.randn(8, 4))
    with pytest.warns(CoverageWarning, match=r"0.0% of 40 .*weights are left in float: weights=32"):
        tuner.finish()


def test_no_warning_from_half_on():
    net = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    keeping = fewbits.Recipe((fewbits.Rule("*", Nearest(bits=4)), fewbits.Rule("1.*", None)))
    coded = fewbits.compress(nn.Sequential(nn.Linear(10, 4, bias=False), net), keeping)
    assert coded.coverage.share == 0.5
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        coded.warn_low_coverage()
    assert "skipped" not in coded.contents.metadata
    assert not fewbits.compress(net, GPFQ(bits=4), torch.randn(8, 4)).coverage.low


def test_a_file_that_is_mostly_float_tells_why(tmp_path):
    coded = fewbits.compress(Table(), Nearest(bits=4))
    coded.save(tmp_path / "net.fewbits")
    info = fewbits.inspect(tmp_path / "net.fewbits")
    assert info.report.coverage == coded.coverage
    assert info.metadata["skipped"] == {"table": "no layer kind takes Table"}
    fewbits.compress(Table(), Nearest(bits=4), metadata=False).save(tmp_path / "net.fewbits")
    assert fewbits.inspect(tmp_path / "net.fewbits").report.coverage.reason == ""


def test_a_plan_for_training_tells_what_the_method_leaves_alone():
    net = nn.Sequential(*(nn.Linear(4, 4) for _ in range(4)))
    assert fewbits.plan(net, LowBit(weights=32, activations=8)).coverage.share == 0
    assert fewbits.plan(net, HEMP()).coverage.share == 0.8
    assert fewbits.plan(net, fewbits.PWFN()).coverage.share == 1  # biases too
    ends = fewbits.plan(net, LowBit(first_last="fp"))
    assert (ends.coverage.share, ends.reasons["0.weight"]) == (
        0.4,
        "the first layer, left in float",
    )


@pytest.mark.parametrize(
    "dtype", [torch.float8_e5m2, torch.float8_e4m3fn, torch.complex64, torch.complex128]
)
def test_plan_network_and_file_count_the_same_weights(tmp_path, dtype):
    network = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 90))
    network[1].weight = nn.Parameter(network[1].weight.data.to(dtype), requires_grad=False)
    with pytest.warns(CoverageWarning, match=r"1\.weight"):
        coded = fewbits.compress(network, fewbits.Nearest(bits=4))
    coded.save(tmp_path / "net.fewbits")
    found = fewbits.inspect(tmp_path / "net.fewbits").report.coverage
    assert coded.plan.coverage == coded.coverage == coded.size_report().coverage
    assert (found.quantized, found.weights, found.largest) == (64, 882, "1.weight")
