"""`tfc.report`: one file that holds all it shows."""

import re
from dataclasses import replace
from html.parser import HTMLParser

import pytest

import tfcompress as tfc
from tfcompress.measure import Measurement

BEFORE = Measurement(
    "float <32>",
    1000,
    1000,
    0.0,
    5000,
    4000,
    3600,
    2.0,
    0.91,
    (("conv/kernel", 900, 0.0),),
)
AFTER = replace(
    BEFORE,
    name="ours",
    nonzero_parameters=200,
    sparsity=0.8,
    gzip_bytes=600,
    latency_ms=0.5,
    accuracy=0.905,
    kernels=(("conv/kernel", 900, 0.85),),
)


def test_the_table_has_every_figure_and_the_ratios(tmp_path):
    written = tfc.report([BEFORE, AFTER], tmp_path / "r.html", title="T & t")
    text = (tmp_path / "r.html").read_text()
    for figure in ("6.00x", "4.00x", "80.0%", "90.5%", "3,600", "-0.5 points"):
        assert figure in text
    assert "float &lt;32&gt;" in text and "T &amp; t" in text
    assert written.path.endswith("r.html")


def test_it_needs_no_other_file_and_no_network(tmp_path):
    tfc.report([BEFORE, AFTER], tmp_path / "r.html")
    text = (tmp_path / "r.html").read_text()
    sources = re.findall(r'(?:src|href)="([^"]{0,30})', text)
    assert len(sources) == 3
    assert all(source.startswith("data:image/png;base64,") for source in sources)


def test_the_plots_lie_beside_it(tmp_path):
    written = tfc.report([BEFORE, AFTER], tmp_path / "r.html")
    names = {"r_accuracy_size.png", "r_accuracy_latency.png", "r_sparsity.png"}
    assert {path.name for path in tmp_path.iterdir()} == {"r.html", *names}
    for path in written.plots:
        with open(path, "rb") as file:
            assert file.read(8) == b"\x89PNG\r\n\x1a\n"


def test_every_tag_is_closed(tmp_path):
    tfc.report([BEFORE, AFTER], tmp_path / "r.html")
    opened = []

    class Checker(HTMLParser):
        def handle_starttag(self, tag, attrs):
            if tag not in ("meta", "img"):
                opened.append(tag)

        def handle_endtag(self, tag):
            assert opened.pop() == tag

    Checker().feed((tmp_path / "r.html").read_text())
    assert not opened


def test_missing_figures_leave_their_plot_out(tmp_path):
    bare = replace(BEFORE, accuracy=None, latency_ms=None, macs=None, kernels=())
    assert tfc.report([bare], tmp_path / "r.html").plots == ()


def test_nothing_and_the_wrong_thing(tmp_path):
    with pytest.raises(ValueError, match="is empty"):
        tfc.report([], tmp_path / "r.html")
    with pytest.raises(TypeError, match="what tfc.measure returns"):
        tfc.report(["model.tflite"], tmp_path / "r.html")
    with pytest.raises(FileNotFoundError, match="there is no folder"):
        tfc.report([BEFORE], tmp_path / "none" / "r.html")
