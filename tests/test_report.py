"""Reports: the reference's figures come out of its rows, files read back, pictures are pictures."""

import csv
import dataclasses
import io
import json
import math
import re
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from jaxslim.errors import InputError
from jaxslim.reporting import plots
from jaxslim.reporting.report import Report, Stage, SweepRow, Table, show, table, write

FULL = (64, 64, "M", 128, 128, "M", 256, 256, 256, 256, "M", 512, 512, 512, 512, "M", 512, 512, 512, 512)
HALF = (54, 64, "M", 128, 128, "M", 256, 256, 249, 226, "M", 202, 118, 141, 238, "M", 188, 214, 198, 91)
MOST = (49, 64, "M", 128, 128, "M", 256, 256, 249, 208, "M", 116, 38, 18, 8, "M", 14, 9, 16, 94)
NAMES = {"report.md", "pipeline.csv", "sweep.csv", "report.json", "accuracy.png", "channels.png", "scales.png"}


def layers(widths):
    return {f"BatchNorm_{index}": width for index, width in enumerate(w for w in widths if w != "M")}


def row(ratio, accuracy, params, macs, widths, **more):
    return SweepRow(
        ratio=ratio, accuracy=accuracy, params=params, macs=macs, widths=widths, kept=layers(widths), **more
    )


def reference(**changes):
    """The rows of the reference's README, with parameters and MACs counted exactly."""
    report = Report(
        title="VGG-19 on CIFAR-10",
        stages=(
            Stage(name="Baseline", accuracy=0.9326, params=20_035_018, macs=398_136_320),
            Stage(name="Trained with sparsity (1e-4)", accuracy=0.9402, params=20_035_018, macs=398_136_320),
            Stage(name="Pruned (ratio 0.7)", accuracy=0.1, params=2_460_793, macs=214_348_324),
            Stage(name="Fine-tuned (10 epochs)", accuracy=0.9264, params=2_460_793, macs=214_348_324),
        ),
        sweep=(
            row(0.0, 0.9326, 20_035_018, 398_136_320, FULL),
            row(0.5, 0.9403, 4_610_516, 238_188_646, HALF),
            row(0.7, 0.9301, 2_460_793, 214_348_324, MOST, finetuned_accuracy=0.9264, protected=("BatchNorm_11",)),
        ),
        channels=layers(FULL),
        scales={"baseline": np.linspace(0.05, 0.5, 5504), "sparse": np.geomspace(1e-7, 0.5, 5504)},
        notes={"hardware": "1 x H200"},
    )
    return dataclasses.replace(report, **changes)


def deep(count=164, ratios=(0.6,)):
    channels = {f"params/Stage_{index // 55}/Bottleneck_{index}/BatchNorm_0": 16 + index for index in range(count)}
    kept = {name: max(1, width // 3) for name, width in channels.items()}
    sweep = tuple(
        SweepRow(ratio=ratio, accuracy=0.1, params=702, macs=9_000, kept=kept, protected=tuple(kept)[:5])
        for ratio in ratios
    )
    return Report(title="Très profond, 日本語 $x_1", sweep=sweep, channels=channels)


def printed(report, width=80):
    console = Console(file=io.StringIO(), width=width)
    show(report, console)
    return console.file.getvalue()


def cells(markdown, first):
    """The cells after `first` in the line of a Markdown table."""
    (line,) = (line for line in markdown.splitlines() if line.startswith(f"| {first} |"))
    return [cell.strip() for cell in line.strip("|").split("|")][1:]


def test_table_holds_the_figures_of_the_reference():
    markdown = table(reference())
    pipeline, rest = markdown.split("## Accuracy, parameters")
    assert cells(pipeline, "Top-1 accuracy (%)") == ["93.26", "94.02", "10.00", "92.64"]
    assert cells(pipeline, "Parameters") == ["20.04 M", "20.04 M", "2.46 M", "2.46 M"]
    assert cells(pipeline, "MACs (multiply-accumulates)") == ["0.40 G", "0.40 G", "0.21 G", "0.21 G"]
    sizes, architecture = rest.split("## Architecture")
    assert cells(sizes, "0.0") == ["93.26", "", "20.04 M (100.0%)", "0.40 G (100.0%)"]
    assert cells(sizes, "0.5") == ["94.03", "", "4.61 M (23.0%)", "0.24 G (59.8%)"]
    assert cells(sizes, "0.7") == ["93.01", "92.64", "2.46 M (12.3%)", "0.21 G (53.8%)"]
    assert cells(architecture, "0.7") == [str(list(MOST)), "BatchNorm_11"]
    assert "FLOP" not in markdown
    assert "hardware: 1 x H200" in markdown


def test_table_of_a_network_without_widths_names_layers_and_marks_protected_ones():
    channels = {"conv1": 16, "conv2": 32}
    sweep = [
        SweepRow(ratio=index / 10, accuracy=0.9, params=900 - index, macs=1_500, kept={"conv1": 16 - index, "conv2": 9})
        for index in range(9)
    ]
    sweep[8] = dataclasses.replace(sweep[8], protected=("conv2",))
    markdown = table(Report(title="digits", sweep=tuple(sweep), channels=channels))
    first, second = markdown.split("## Architecture against ratio")[1:]
    assert cells(first, "conv1") == ["16", "16", "15", "14", "13", "12", "11", "10", "9"]
    assert cells(second, "conv2") == ["32", "9!"]
    assert cells(second, "Total") == ["48", "17"]
    assert cells(markdown, "0.8")[1:] == ["892 (99.1%)", "1.50 k (100.0%)"]


@pytest.mark.parametrize(
    ("count", "params", "macs"),
    [
        (999, "999", "999"),
        (1_000, "1.00 k", "1.00 k"),
        (1_000_000, "1.00 M", "1.00 M"),
        (138_000_000, "138.00 M", "0.14 G"),
    ],
)
def test_units_suit_the_size_of_the_network(count, params, macs):
    markdown = table(Report(title="t", stages=(Stage(name="a", accuracy=0.5, params=count, macs=count),)))
    assert cells(markdown, "Parameters") == [params]
    assert cells(markdown, "MACs (multiply-accumulates)") == [macs]


def test_shares_of_the_full_network_need_a_full_network():
    (_, _, most) = reference().sweep
    alone = Report(title="t", sweep=(most,), channels=layers(FULL))
    assert alone.full is None
    assert cells(table(alone).split("## Architecture")[0], "0.7")[2:] == ["2.46 M", "0.21 G"]
    assert plots.accuracy(alone) is not None
    assert dataclasses.replace(alone, stages=reference().stages).full == (20_035_018, 398_136_320)


def test_empty_sections_are_left_out(tmp_path):
    empty = Report(title="nothing yet")
    assert table(empty) == "# nothing yet\n"
    assert printed(empty) == "nothing yet\n"
    assert [path.name for path in write(empty, tmp_path)] == ["report.md", "report.json"]
    assert "Pipeline" not in table(reference(stages=()))
    assert "ratio" not in table(reference(sweep=(), stages=()))
    assert "Notes" not in table(reference(notes={}))
    sparse_only = write(Report(title="t", scales={"sparse": np.ones(3), "none": np.array([])}), tmp_path / "scales")
    assert [path.name for path in sparse_only] == ["report.md", "report.json", "scales.png"]


def test_markdown_of_names_is_escaped():
    stage = Stage(name="a|b", accuracy=0.5, params=1, macs=1, note="two\nlines of _this_ and snake_case <b>")
    kept = {"conv|1*": 2}
    sweep = (SweepRow(ratio=0.5, accuracy=0.5, params=1, macs=1, kept=kept),)
    markdown = table(Report(title="`x`", stages=(stage,), sweep=sweep, channels=kept, notes={"run": "a && b [c]"}))
    assert "| a\\|b |" in markdown
    assert "| conv\\|1\\* | 2 | 2 |" in markdown
    assert "two lines of \\_this\\_ and snake_case \\<b>" in markdown
    assert markdown.startswith("# \\`x\\`\n")
    assert "- run: a && b \\[c]" in markdown
    for block in re.findall(r"(?:^\|.*\n)+", markdown, re.MULTILINE):
        bars = [len(re.findall(r"(?<!\\)\|", line)) for line in block.splitlines()]
        assert len(set(bars)) == 1


@pytest.mark.parametrize("width", [80, 120])
def test_terminal_shows_whole_figures(width):
    more = {"verified_accuracy": 0.9301, "logits_difference": 1.2e-5, "finetuned_accuracy": 0.92}
    sweep = tuple(dataclasses.replace(one, **more) for one in reference().sweep)
    text = printed(reference(sweep=sweep), width)
    assert max(map(len, text.splitlines())) <= width
    for figure in ("20.04 M (100.0%)", "0.21 G (53.8%)", "1.2e-05", "Fine-tuned", "1 x H200", "BatchNorm_11"):
        assert figure in text
    assert "[49, 64, 'M', 128, 128, 'M'" in text


def test_terminal_shows_markup_in_names_as_it_is():
    kept = {"[red]conv[/red]": 3}
    text = printed(
        Report(title="[b]t", sweep=(SweepRow(ratio=0, accuracy=1, params=1, macs=1, kept=kept),), channels=kept)
    )
    assert "[b]t" in text
    assert "[red]conv[/red]" in text


def test_csv_reads_back_to_equal_numbers(tmp_path):
    report = reference()
    write(report, tmp_path)
    with (tmp_path / "sweep.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    for line, wanted in zip(rows, report.sweep, strict=True):
        assert float(line["ratio"]) == wanted.ratio
        assert float(line["accuracy"]) == wanted.accuracy
        assert (int(line["params"]), int(line["macs"])) == (wanted.params, wanted.macs)
        assert {name: int(line[f"kept {name}"]) for name in wanted.kept} == wanted.kept
        assert int(line["kept_channels"]) == sum(wanted.kept.values())
        assert line["widths"].split() == list(map(str, wanted.widths))
    assert [line["finetuned_accuracy"] for line in rows] == ["", "", "0.9264"]
    with (tmp_path / "pipeline.csv").open(encoding="utf-8", newline="") as file:
        stages = list(csv.DictReader(file))
    assert [(line["name"], float(line["accuracy"])) for line in stages] == [
        (one.name, one.accuracy) for one in report.stages
    ]


def test_json_reads_back(tmp_path):
    report = reference(scales={"sparse": np.array([0.0, 0.001, 0.5, np.nan]), "none": np.array([])})
    write(report, tmp_path)
    read = json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))
    rows = [one | {"widths": tuple(one["widths"]), "protected": tuple(one["protected"])} for one in read["sweep"]]
    assert tuple(SweepRow(**one) for one in rows) == report.sweep
    assert tuple(Stage(**one) for one in read["stages"]) == report.stages
    assert (read["title"], read["channels"], read["notes"]) == (report.title, report.channels, report.notes)
    assert list(read["channels"]) == list(report.channels)
    sparse = read["scales"]["sparse"]
    assert (sparse["count"], sparse["min"], sparse["max"]) == (3, 0, 0.5)
    assert sparse["quantiles"]["0.5"] == 0.001
    assert sparse["share_under_0.01"] == 2 / 3
    assert read["scales"]["none"] == {"count": 0}


def test_numbers_that_are_missing_or_from_numpy(tmp_path):
    kept = {"conv": np.int64(3)}
    unknown = SweepRow(
        ratio=0.5,
        accuracy=math.nan,
        params=np.int64(7),
        macs=7,
        kept=kept,
        logits_difference=math.inf,
        widths=(np.int64(3), "M"),
    )
    report = Report(
        title="t",
        stages=(Stage(name="a", accuracy=np.float32(0.5), params=7, macs=7),),
        sweep=(unknown,),
        channels={"conv": 4},
    )
    write(report, tmp_path)
    read = json.loads((tmp_path / "report.json").read_text())
    (line,) = read["sweep"]
    assert line["accuracy"] is None
    assert line["logits_difference"] is None
    assert (line["params"], line["kept"], read["stages"][0]["accuracy"]) == (7, {"conv": 3}, 0.5)
    sizes, architecture = table(report).split("## Accuracy")[1].split("## Architecture")
    assert cells(sizes, "0.5")[:2] == ["n/a", "n/a"]
    assert cells(architecture, "0.5") == ["[3, 'M']"]


def test_write_creates_the_folder_and_returns_its_files(tmp_path):
    folder = tmp_path / "new" / "folder"
    paths = write(reference(), folder)
    assert {path.name for path in paths} == NAMES
    assert set(paths) == set(folder.iterdir())
    markdown = (folder / "report.md").read_text(encoding="utf-8")
    assert re.findall(r"\]\((\w+\.png)\)", markdown) == ["accuracy.png", "channels.png", "scales.png"]
    assert ".png" not in table(reference())


def test_write_into_a_file_is_the_users_mistake(tmp_path):
    (tmp_path / "taken").write_text("")
    with pytest.raises(InputError, match="taken"):
        write(reference(), tmp_path / "taken")


@pytest.mark.parametrize("step", ["write", "replace", "draw"])
def test_failure_leaves_the_old_files_and_no_parts(tmp_path, monkeypatch, step):
    for name in NAMES:
        (tmp_path / name).write_text("old")

    def full_disk(path, content):
        with open(path, "wb") as file:
            file.write(content[: len(content) // 2])
        raise OSError("no space left")

    def refuse(*_):
        raise OSError("no space left")

    target, name, broken = {
        "write": ("pathlib.Path", "write_bytes", full_disk),
        "replace": ("os", "replace", refuse),
        "draw": ("jaxslim.plots", "scales", refuse),
    }[step]
    monkeypatch.setattr(f"{target}.{name}", broken)
    with pytest.raises(OSError, match="no space"):
        write(reference(), tmp_path)
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == dict.fromkeys(NAMES, "old")


def test_write_replaces_older_files(tmp_path):
    write(reference(title="first"), tmp_path)
    write(reference(title="second"), tmp_path)
    assert (tmp_path / "report.md").read_text().startswith("# second\n")
    assert {path.name for path in tmp_path.iterdir()} == NAMES


@pytest.mark.parametrize(
    "report",
    [
        reference(),
        reference(title="Größe, 日本語, $x_1 ✓ " * 20),
        deep(),
        deep(30, ratios=np.arange(0, 1, 0.05)),
        reference(sweep=(row(0.9, math.nan, 1, 1, MOST),), scales={"zeros": np.zeros(5), "$a": np.full(3, 2.0)}),
    ],
    ids=["reference", "non-ascii", "deep", "many ratios", "extreme"],
)
def test_pictures_are_pictures(tmp_path, report):
    for path in write(report, tmp_path):
        if path.suffix == ".png":
            with Image.open(path) as image:
                image.load()
                assert image.format == "PNG"
                assert image.width == 1080
                assert 300 < image.height < 1100
                darkest, lightest = image.convert("L").getextrema()
                assert darkest < 60
                assert lightest == 255
                assert image.convert("RGB").getpixel((1, image.height - 2)) == (255, 255, 255)


def test_further_tables_and_the_picture_of_what_is_compared(tmp_path):
    points = {f"way {number}": ((0.0, 0.9), (0.7, 0.1 * number)) for number in range(8)} | {
        "unknown": ((0.7, math.nan),)
    }
    extra = Table("Ways | to cut", ["Way", "Accuracy (%)"], [["as *before*", "93.00"]], "compared.png")
    report = reference(tables=(extra,), compared=points)
    write(report, tmp_path)
    text = (tmp_path / "report.md").read_text()
    assert text.index("## Architecture") < text.index("## Ways") < text.index("![Ways")
    assert "| as \\*before\\* | 93.00 |" in text
    assert "Ways | to cut" in printed(report)
    with Image.open(tmp_path / "compared.png") as picture:
        picture.verify()
    record = json.loads((tmp_path / "report.json").read_text())
    assert record["compared"]["way 3"] == [[0.0, 0.9], [0.7, pytest.approx(0.3)]]
    assert record["tables"][0][2] == [["as *before*", "93.00"]]
    assert plots.compared(reference()) is None


def test_non_ascii_title_survives(tmp_path):
    report = deep(3)
    write(report, tmp_path)
    assert json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))["title"] == report.title
    assert "Très profond, 日本語" in (tmp_path / "report.md").read_text(encoding="utf-8")
    assert "Très profond, 日本語" in printed(report)


def test_channels_are_drawn_for_ratios_up_to_070():
    rows = [row(ratio, 0.5, 1, 1, MOST) for ratio in (0.9, 0.0, 0.1, 0.3, 0.5, 0.7, 0.8)]
    assert [one.ratio for one in plots._chosen(rows)] == [0.1, 0.5, 0.7]
    assert [one.ratio for one in plots._chosen(rows[:1])] == [0.9]
    assert plots._chosen([]) == []


def test_layer_names_under_bars_stay_short_and_distinct():
    names = [f"params/VeryLongBlockName_{index}/BatchNorm_0/scale" for index in range(30)]
    short = plots._layer_names(names)
    assert max(map(len, short)) <= 24
    assert len(set(short)) == 30
    assert plots._layer_names(["only/one"]) == ["only/one"]


def test_percentages_and_unknown_layers_are_refused():
    with pytest.raises(ValueError, match=r"accuracy is 93\.26"):
        Stage(name="a", accuracy=93.26, params=1, macs=1)
    with pytest.raises(ValueError, match="finetuned_accuracy"):
        row(0.5, 0.9, 1, 1, MOST, finetuned_accuracy=92.0)
    with pytest.raises(ValueError, match="BatchNorm_15"):
        reference(channels={name: 1 for name in layers(FULL) if name != "BatchNorm_15"})


def test_report_is_imported_without_jax_matplotlib_or_rich():
    code = "import sys, jaxslim.report; print(sorted({'jax', 'matplotlib', 'rich'} & sys.modules.keys()))"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout == "[]\n"


def test_pictures_leave_pyplot_and_settings_alone():
    code = (
        "import sys, matplotlib; size = matplotlib.rcParams['font.size'] = 13; import numpy as np;"
        "from jaxslim import plots; from jaxslim.report import Report;"
        "plots.scales(Report(title='t', scales={'a': np.ones(3)}));"
        "print('matplotlib.pyplot' in sys.modules, matplotlib.rcParams['font.size'])"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout == "False 13.0\n"
