"""Reports: the reference's figures come out, files read back, lines wrap between words, plots show what they should."""

import csv
import dataclasses
import io
import json
import math
import re
import subprocess
import sys
from unittest import mock

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from jaxslim.reporting import canvas, plot_channels, plots
from jaxslim.reporting.report import PipelineRow, Report, SweepRow, Table, markdown, show, write
from jaxslim.reporting.tables import tables_of

FULL = (64, 64, "M", 128, 128, "M", 256, 256, 256, 256, "M", 512, 512, 512, 512, "M", 512, 512, 512, 512)
HALF = (54, 64, "M", 128, 128, "M", 256, 256, 249, 226, "M", 202, 118, 141, 238, "M", 188, 214, 198, 91)
MOST = (49, 64, "M", 128, 128, "M", 256, 256, 249, 208, "M", 116, 38, 18, 8, "M", 14, 9, 16, 94)


def layers(widths):
    return {f"BatchNorm_{index}": width for index, width in enumerate(w for w in widths if w != "M")}


def row(ratio, accuracy, params, macs, widths, **more):
    size = {"params": params, "macs": macs, "kept": layers(widths), "architecture": str(list(widths))}
    return SweepRow(ratio=ratio, accuracy=accuracy, **size, **more)


def reference(**changes):
    """The rows of the reference's README, with parameters and MACs counted exactly."""
    full, cut = {"params": 20_035_018, "macs": 398_136_320}, {"params": 2_460_793, "macs": 214_348_324}
    values = {
        "title": "VGG-19 on CIFAR-10",
        "pipeline": (
            PipelineRow(name="Baseline", accuracy=0.9326, **full),
            PipelineRow(name="Trained with sparsity (1e-4)", accuracy=0.9402, **full),
            PipelineRow(name="Pruned (ratio 0.7)", accuracy=0.1, **cut),
            PipelineRow(name="Fine-tuned (10 epochs)", accuracy=0.9264, **cut),
        ),
        "sweep": (
            row(0.0, 0.9326, 20_035_018, 398_136_320, FULL),
            row(0.5, 0.9403, 4_610_516, 238_188_646, HALF),
            row(0.7, 0.9301, 2_460_793, 214_348_324, MOST, finetuned_accuracy=0.9264, protected=("BatchNorm_11",)),
        ),
        "channels": layers(FULL),
        "notes": {"hardware": "1 x H200"},
    }
    return Report(**values | changes)


def deep(count=164, ratios=(0.6,)):
    channels = {f"params/Stage_{index // 55}/Bottleneck_{index}/BatchNorm_0": 16 + index for index in range(count)}
    one = {"accuracy": 0.1, "params": 702, "macs": 9_000, "kept": channels, "protected": tuple(channels)[:5]}
    return Report(title="deep", sweep=tuple(SweepRow(ratio=ratio, **one) for ratio in ratios), channels=channels)


def measured_everything():
    """A report with every column, every plot, and names as long as people give them."""
    more = {"plain_accuracy": 0.85, "verified_accuracy": 0.93, "logits_difference": 1.2e-5, "finetuned_accuracy": 0.92}
    ways = ["as the reference", "absorbed", *(f"{number}: absorbed and recalibrated, proximal" * 2 for number in "34")]
    run = [
        {"epoch": epoch, "loss": 2 / epoch, "test_loss": 2.1 / epoch, "accuracy": 0.9, "train_accuracy": 0.95}
        | {"learning_rate": rate, "small_scales": 0.1}
        for epoch, rate in enumerate([0.1] * 10 + [0.01] * 5 + [0.001] * 5, 1)
    ]
    return reference(
        title="Très profond, 日本語 $x_1",
        sweep=tuple(dataclasses.replace(one, **more) for one in reference().sweep),
        compared={way: ((0.0, 0.9 - 0.1 * place), (0.7, 0.1)) for place, way in enumerate(ways)},
        curves={"baseline": run, "trained with sparsity by a proximal step on all scales, and then some" * 2: run[:9]},
        scales={"baseline": np.ones(9), "sparse": np.array([0.0, 0.001, 0.005, 0.5, np.nan]), "none": np.array([])},
        thresholds={"sparse": {0.5: 2e-4, 0.7: 4e-3}},
        more_tables=(Table("Beside | what is published", ["Ratio", "%"], [["0.7", "93.01"]], "compared.png"),),
        notes={"command": "python scripts/reproduce.py --dataset cifar10 --out results/of/many/seeds", "data": "whole"},
    )


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """A folder with the files of `measured_everything`, which replaced those of another report."""
    folder = tmp_path_factory.mktemp("report") / "new"
    write(Report(title="older"), folder)
    assert set(write(measured_everything(), folder)) == set(folder.iterdir())
    return folder


def printed(report, width=80):
    console = Console(file=io.StringIO(), width=width)
    show(report, console)
    return console.file.getvalue()


def cells(text, first):
    """The cells after `first` in the line of a Markdown table."""
    (line,) = (line for line in text.splitlines() if line.startswith(f"| {first} |"))
    return [cell.strip() for cell in line.strip("|").split("|")][1:]


def drawn(plot, report):
    """The figure of the plot of this name, laid out."""
    with canvas.report_style():
        figure = plots.PLOTS[plot](report)
        figure.draw_without_rendering()
    return figure


def labels(legend):
    return [text.get_text().replace("\n", " ") for text in legend.get_texts()]


def test_markdown_holds_the_figures_of_the_reference():
    pipeline, rest = markdown(reference()).split("## Accuracy, parameters")
    assert cells(pipeline, "Top-1 accuracy (%)") == ["93.26", "94.02", "10.00", "92.64"]
    assert cells(pipeline, "Parameters") == ["20.04 M", "20.04 M", "2.46 M", "2.46 M"]
    assert cells(pipeline, "MACs per image") == ["0.40 G", "0.40 G", "0.21 G", "0.21 G"]
    sizes, architecture = rest.split("## Architecture")
    assert cells(sizes, "0.0") == ["93.26", "", "20.04 M (100.0%)", "0.40 G (100.0%)"]
    assert cells(sizes, "0.5") == ["94.03", "", "4.61 M (23.0%)", "0.24 G (59.8%)"]
    assert cells(sizes, "0.7") == ["93.01", "92.64", "2.46 M (12.3%)", "0.21 G (53.8%)"]
    assert cells(architecture, "0.7") == [str(list(MOST)), "BatchNorm_11"]


def test_without_an_architecture_the_table_names_layers_and_marks_protected_ones():
    channels, size = {"conv1": 16, "conv2": 32}, {"accuracy": 0.9, "macs": 1_500}
    full = SweepRow(ratio=0, params=900, kept=channels, architecture="[16, 32]", **size)  # the cut one has none
    cut = SweepRow(ratio=0.8, params=892, kept={"conv1": 8, "conv2": 9}, protected=("conv2",), **size)
    sizes, architecture = markdown(Report(title="digits", sweep=(full, cut), channels=channels)).split("## Arch")
    assert cells(architecture, "conv1") == ["16", "16", "8"]
    assert cells(architecture, "conv2") == ["32", "32", "9!"]
    assert cells(architecture, "Total") == ["48", "48", "17"]
    assert cells(sizes, "0.8")[1:] == ["892 (99.1%)", "1.50 k (100.0%)"]


def test_shares_of_the_full_network_need_a_full_network():
    alone = Report(title="t", sweep=reference().sweep[2:], channels=layers(FULL))
    assert cells(markdown(alone).split("## Architecture")[0], "0.7")[2:] == ["2.46 M", "0.21 G"]
    assert len(drawn("accuracy", alone).axes) == 1
    assert dataclasses.replace(alone, pipeline=reference().pipeline).full.params == 20_035_018


def test_empty_sections_are_left_out(tmp_path):
    empty = Report(title="nothing yet", scales={"none": np.array([])}, curves={"none": []})
    assert markdown(empty) == "# nothing yet\n"
    assert printed(empty) == "nothing yet\n"
    assert [path.name for path in write(empty, tmp_path)] == ["report.md", "report.json"]


def test_names_are_shown_as_they_are():
    named = PipelineRow(name="a|b", accuracy=0.5, params=1, macs=1, note="two\nlines of _this_ and snake_case <b>")
    kept = {"conv|1*": 2, "[red]conv[/red]": 3}
    sweep = (SweepRow(ratio=0.5, accuracy=0.5, params=1, macs=1, kept=kept),)
    report = Report(title="`[b]x`", pipeline=(named,), sweep=sweep, channels=kept, notes={"run": "a && b [c]"})
    note = "two lines of \\_this\\_ and snake_case \\<b>"
    for part in ("# \\`\\[b]x\\`\n", "| a\\|b |", "| conv\\|1\\* | 2 | 2 |", "- run: a && b \\[c]", note):
        assert part in markdown(report)
    for name in ("`[b]x`", "[red]conv[/red]", "conv|1*", "a && b [c]"):
        assert name in printed(report)


@pytest.mark.parametrize("width", [60, 80, 100, 200])
def test_terminal_breaks_lines_between_words(width):
    for report in (measured_everything(), deep(3, ratios=np.arange(0, 1, 0.05))):
        text = printed(report, width)
        assert max(map(len, text.splitlines())) <= width
        tables = [cell for table in tables_of(report) for line in (table.header, *table.rows) for cell in line]
        texts = [report.title, *tables, *(table.title for table in tables_of(report)), *report.notes.values()]
        assert {word for cell in texts for word in cell.split()} <= set(text.split())
        assert "\N{HORIZONTAL ELLIPSIS}" not in text
    for figure in ("20.04 M (100.0%)", "0.21 G (53.8%)", "1.2e-05", "[49, 64, 'M', 128,"):
        assert figure in printed(measured_everything(), width)


def test_csv_reads_back_to_equal_numbers(written):
    report = measured_everything()
    for name, rows in (("pipeline.csv", report.pipeline), ("sweep.csv", report.sweep)):
        lines = csv.DictReader((written / name).read_text(encoding="utf-8").splitlines())
        for line, wanted in zip(lines, map(dataclasses.asdict, rows), strict=True):
            kept = wanted.pop("kept", {})
            wanted |= {"protected": " ".join(wanted["protected"]), "kept_channels": sum(kept.values())} if kept else {}
            wanted |= {f"kept {layer}": count for layer, count in kept.items()}
            assert line == {key: str(value) for key, value in wanted.items()}


def test_json_reads_back(written):
    report, read = measured_everything(), json.loads((written / "report.json").read_text(encoding="utf-8"))
    assert tuple(SweepRow(**one | {"protected": tuple(one["protected"])}) for one in read["sweep"]) == report.sweep
    assert tuple(PipelineRow(**one) for one in read["pipeline"]) == report.pipeline
    for name in ("title", "channels", "notes", "curves"):
        assert read[name] == getattr(report, name)
    assert read["thresholds"] == {"sparse": {"0.5": 2e-4, "0.7": 4e-3}}
    assert read["compared"]["absorbed"] == [[0.0, 0.8], [0.7, 0.1]]
    sparse = read["scales"]["sparse"]
    assert (sparse["count"], sparse["min"], sparse["max"], sparse["share_under_0.01"]) == (4, 0, 0.5, 0.75)
    assert sparse["quantiles"]["0.5"] == pytest.approx(0.003)
    assert read["scales"]["none"] == {"count": 0}


def test_numbers_that_are_missing_or_from_numpy(tmp_path):
    size = {"params": np.int64(7), "macs": 7, "kept": {"conv": np.int64(3)}}
    unknown = SweepRow(ratio=0.5, accuracy=math.nan, logits_difference=math.inf, **size)
    report = Report(title="t", sweep=(unknown,), channels={"conv": 4})
    write(report, tmp_path)
    line = json.loads((tmp_path / "report.json").read_text())["sweep"][0]
    assert (line["accuracy"], line["logits_difference"], line["kept"]) == (None, None, {"conv": 3})
    assert cells(markdown(report), "0.5")[:2] == ["n/a", "n/a"]


def test_markdown_shows_every_plot_once_and_the_same_report_gives_the_same_plots(written):
    text, pictures = (written / "report.md").read_text(encoding="utf-8"), plots.draw(measured_everything())
    assert {path.name: path.read_bytes() for path in written.iterdir() if path.suffix in (".png", ".svg")} == pictures
    names = ["accuracy.png", "channels.png", "compared.png", "scales.png", "curves.png"]
    assert set(pictures) == {name.replace("png", form) for name in names for form in ("png", "svg")}
    assert re.findall(r"\]\((\w+\.\w+)\)", text) == names
    assert text.index("## Beside \\| what") < text.index("![Beside")


@pytest.mark.parametrize("broken", ["os.replace", "jaxslim.reporting.plots.draw"])
def test_failure_leaves_the_old_files_and_no_parts(tmp_path, monkeypatch, broken):
    old = dict.fromkeys(("report.md", "sweep.csv", "report.json", "accuracy.png"), "old")
    for name, content in old.items():
        (tmp_path / name).write_text(content)
    monkeypatch.setattr(broken, mock.Mock(side_effect=OSError("no space left")))
    with pytest.raises(OSError, match="no space"):
        write(reference(), tmp_path)
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == old


EXTREME = Report(
    title="Größe, 日本語, $x_1 ✓ " * 20,
    sweep=(row(0.9, math.nan, 1, 1, MOST),),
    channels=layers(FULL),
    scales={"zeros": np.zeros(5), "$a": np.full(3, 2.0)},
    thresholds={"zeros": {0.9: 0.0}},
    compared={"unknown": ((0.7, math.nan),)},
    curves={"one epoch": [{"epoch": 1, "accuracy": 0.1, "learning_rate": 0.0, "loss": None}]},
)


@pytest.mark.parametrize("report", [deep(), deep(30, np.arange(0, 1, 0.05)), EXTREME], ids=["deep", "many", "odd"])
def test_plots_are_pictures(report):
    pictures = plots.draw(report)
    assert all(b"<svg" in content for name, content in pictures.items() if name.endswith(".svg"))
    for content in (content for name, content in pictures.items() if name.endswith(".png")):
        with Image.open(io.BytesIO(content)) as image:
            assert image.width == 1080
            assert 300 < image.height < 1100
            assert image.convert("L").getextrema() == (pytest.approx(0, abs=60), 255)


def test_accuracy_plot_names_its_lines_and_the_baseline():
    top, bottom = drawn("accuracy", measured_everything()).axes
    assert labels(top.get_legend()) == ["with absorption", "without absorption", "fine-tuned", "baseline 93.26%"]
    assert labels(bottom.get_legend()) == ["parameters", "MACs"]
    assert top.get_legend().get_window_extent().y0 >= top.bbox.y1
    assert top.lines[-1].get_ydata() == [pytest.approx(93.26)] * 2
    plain = drawn("accuracy", reference(pipeline=(), baseline_accuracy=0.95)).axes[0]
    assert labels(plain.get_legend()) == ["before fine-tuning", "fine-tuned", "baseline 95.00%"]
    assert reference(pipeline=()).baseline == ("uncut", 0.9326)
    assert reference(pipeline=(), sweep=reference().sweep[1:]).baseline is None


@pytest.mark.parametrize(("plot", "last"), [("compared", "baseline 93.26%"), ("curves", "test images")])
def test_legends_hold_whole_names_beside_the_panels(plot, last):
    figure = drawn(plot, measured_everything())
    wanted = [*getattr(measured_everything(), plot), last]
    assert labels(figure.legends[0])[: len(wanted)] == wanted
    box = figure.legends[0].get_window_extent()
    assert figure.bbox.x0 <= box.x0 < box.x1 <= figure.bbox.x1
    assert not any(box.overlaps(panel.get_tightbbox()) for panel in figure.axes)
    assert all(panel.get_window_extent().height > 100 for panel in figure.axes)


def test_scale_plot_marks_the_thresholds_of_cuts():
    baseline, sparse = drawn("scales", measured_everything()).axes
    assert [line.get_xdata()[0] for line in (*baseline.lines, *sparse.lines)] == [2e-4, 4e-3]
    assert [text.get_text().strip() for text in sparse.texts] == ["cut at 0.5", "cut at 0.7"]
    assert "0.0% of 9 scales are under 0.01" in baseline.get_title(loc="left")
    assert "75.0% of 4 scales are under 0.01" in sparse.get_title(loc="left")


def test_curves_show_loss_accuracy_rate_and_small_scales():
    figure = drawn("curves", measured_everything())
    panels = {panel.get_title(loc="left"): panel for panel in figure.axes}
    assert list(panels) == ["Loss", "Top-1 accuracy (%)", "Learning rate", "Scales under 0.01 (%)"]
    rate = panels["Learning rate"]
    assert rate.get_yscale() == "log"
    assert rate.lines[0].get_ydata()[[9, 10, 19]].tolist() == [0.1, 0.01, 0.001]
    test, training = panels["Top-1 accuracy (%)"].lines[:2]
    assert (test.get_ydata()[0], training.get_ydata()[0]) == (90, 95)
    assert (test.get_linestyle(), training.get_linestyle()) == ("-", ":")


def test_channels_are_drawn_for_ratios_up_to_070():
    rows = [row(ratio, 0.5, 1, 1, MOST) for ratio in (0.9, 0.0, 0.1, 0.3, 0.5, 0.7, 0.8)]
    assert [one.ratio for one in plot_channels.shown_rows(rows)] == [0.1, 0.5, 0.7]
    assert [one.ratio for one in plot_channels.shown_rows(rows[:1])] == [0.9]
    heights = [bar.get_height() for bar in drawn("channels", reference()).axes[1].patches]
    assert heights == [*layers(FULL).values(), *layers(MOST).values()]
    short = plot_channels.layer_names([f"params/VeryLongBlockName_{index}/BatchNorm_0/scale" for index in range(30)])
    assert max(map(len, short)) <= 24
    assert len(set(short)) == 30


def test_percentages_and_unknown_layers_are_refused():
    with pytest.raises(ValueError, match=r"finetuned_accuracy is 93\.26"):
        row(0.5, 0.9, 1, 1, MOST, finetuned_accuracy=93.26)
    with pytest.raises(ValueError, match="BatchNorm_15"):
        reference(channels={name: 1 for name in layers(FULL) if name != "BatchNorm_15"})


def test_reports_leave_pyplot_and_settings_alone(tmp_path):
    code = """if True:
        import sys, numpy as np
        from jaxslim.reporting.report import Report, write
        print(sorted({"jax", "matplotlib"} & sys.modules.keys()))
        import matplotlib
        matplotlib.rcParams["font.size"] = 13
        write(Report(title="t", scales={"a": np.ones(3)}), sys.argv[1])
        print(sorted({"jax", "matplotlib.pyplot"} & sys.modules.keys()), matplotlib.rcParams["font.size"])
    """
    ran = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True)
    assert ran.stdout == "[]\n[] 13.0\n"
