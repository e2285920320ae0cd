"""State dicts of PyTorch: the same logits in jaxslim, dense and pruned, and refusals that name what does not fit."""

import os
import pickle
import re
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save, save_file
from test_commands import assert_one_message, flat, invoke
from test_loop import write_data

import jaxslim
from jaxslim import models
from jaxslim.commands import importing
from jaxslim.commands import train as train_command
from jaxslim.errors import InputError
from jaxslim.experiments.cutting import save_cut
from jaxslim.experiments.importing import import_network
from jaxslim.slim.kinds.linen import Narrow
from jaxslim.storage import checkpoint

ARGUMENTS: dict[str, tuple[str, dict[str, Any]]] = {
    "vgg": ("vgg", {"widths": (8, "M", 6, 7, "M", 9)}),
    "vgg_cut": ("vgg", {"widths": (8, "M", 6, 7, "M", 9)}),
    "preresnet": ("preresnet", {"depth": 11, "widths": (2, 3, 4)}),
    "preresnet_cut": ("preresnet", {"depth": 11, "widths": (3, 4, 5)}),
    "densenet": ("densenet", {"depth": 7, "growth": 4}),
    "densenet_cut": ("densenet", {"depth": 7, "growth": 4}),
    "resnet": ("resnet", {"blocks": (2, 1), "width": 4}),
    "resnet_bottleneck": ("resnet", {"blocks": (1, 1), "width": 4, "bottleneck": True}),
    "resnet_cifar": ("resnet", {"blocks": (1, 1), "width": 4, "small_images": True}),
    "vgg_imagenet": ("vgg_imagenet", {"widths": (4, "M", 3, "M")}),
}
"""Model and arguments of the full network of each state dict; those of VGGs name the poolings only."""
FILE = load_file(Path(__file__).with_name("from_pytorch.safetensors"))
"""What `torch_networks.py` wrote with PyTorch: `NETWORK/ARRAY`, `images` and `logits/NETWORK`."""
COMMITTED = sorted({name.split("/")[0] for name in FILE} - {"images", "logits"})
NO_TORCH = "PyTorch is not installed"


def state_of(name: str) -> dict[str, np.ndarray]:
    return {key.removeprefix(f"{name}/"): array for key, array in FILE.items() if key.startswith(f"{name}/")}


def read(name: str, source: Any) -> tuple[Any, Any]:
    model, arguments = ARGUMENTS[name]
    return jaxslim.from_pytorch(source, model, **arguments)


def assert_logits(found: tuple[Any, Any], images: Any, expected: np.ndarray) -> None:
    module, variables = found
    assert np.abs(jax.jit(module.apply)(variables, images) - expected).max() < 1e-5 * np.abs(expected).max()


# ---------------------------------------------------------------------------------------------------------------------
# The same logits


@pytest.mark.parametrize("name", COMMITTED)
def test_logits_equal_those_of_the_committed_file(name: str) -> None:
    module, variables = found = read(name, state_of(name))
    assert_logits(found, FILE["images"], FILE[f"logits/{name}"])
    assert isinstance(module, Narrow) == (name in ("preresnet_cut", "densenet_cut"))
    if name == "vgg_cut":
        assert module == models.VGG((3, "M", 6, 1, "M", 4), num_classes=5)
    if name == "preresnet_cut":  # what no norm reads leaves the stream too, which the authors' network keeps
        assert variables["params"]["layer3_0"]["conv3"]["kernel"].shape[-1] < 20


@pytest.mark.parametrize("name", ARGUMENTS)
def test_logits_equal_those_of_pytorch(name: str) -> None:
    """As DataParallel and a training script save it, with the biases and masks of the repository."""
    pytest.importorskip("torch", reason=NO_TORCH)
    import torch_networks as peer

    net, images = peer.trained(peer.NETWORKS[name], seed=1), peer.images()
    state = {f"module.{key}": value for key, value in net.state_dict().items()}
    assert_logits(read(name, {"state_dict": state, "cfg": [1], "epoch": 3}), images, peer.logits(net, images))


def test_files_hold_what_the_state_dict_holds(tmp_path: Path) -> None:
    state = state_of("vgg_cut")
    save_file(state, tmp_path / "net.safetensors")
    module, variables = read("vgg_cut", tmp_path / "net.safetensors")
    same, expected = read("vgg_cut", state)
    assert module == same
    jax.tree.map(np.testing.assert_array_equal, variables, expected)


@pytest.mark.parametrize("is_zip", [True, False])
def test_files_of_torch_save(tmp_path: Path, is_zip: bool) -> None:
    """Of today, and of the PyTorch that the repositories were written for."""
    torch = pytest.importorskip("torch", reason=NO_TORCH)
    state = {f"_orig_mod.module.{key}": torch.tensor(array) for key, array in state_of("vgg_cut").items()}
    counters = {"feature.1.num_batches_tracked": torch.tensor(7)}
    saved = {
        "cfg": [3, "M"],
        "state_dict": state | counters,
        "best_prec1": torch.tensor(0.9),
        "optimizer": {"state": {}},
    }
    torch.save(saved, tmp_path / "net.pth.tar", _use_new_zipfile_serialization=is_zip)
    found = read("vgg_cut", tmp_path / "net.pth.tar")
    jax.tree.map(np.testing.assert_array_equal, found[1], read("vgg_cut", state_of("vgg_cut"))[1])


def test_the_number_of_classes_may_be_asked_for() -> None:
    state = state_of("vgg_cut")
    model, arguments = ARGUMENTS["vgg_cut"]
    assert jaxslim.from_pytorch(state, model, num_classes=5, **arguments)[0].num_classes == 5
    with pytest.raises(InputError, match=r"holds classifier.bias of shape \(5,\), and vgg takes \(10,\) there"):
        jaxslim.from_pytorch(state, model, num_classes=10, **arguments)


# ---------------------------------------------------------------------------------------------------------------------
# What does not fit


def changed(name: str, **arrays: Any) -> dict[str, Any]:
    """A state dict with other arrays, by their names with `__` for dots; without those that are None."""
    state = {**state_of(name), **{key.replace("__", "."): array for key, array in arrays.items()}}
    return {key: array for key, array in state.items() if array is not None}


MISFITS: dict[str, tuple[str, dict[str, Any], str]] = {
    "an unknown name": ("vgg", {"head__weight": np.ones(3)}, r"does not fit vgg: it holds head.weight; give the model"),
    "a missing one": ("resnet_bottleneck", {"fc__bias": None}, "does not fit resnet: it lacks fc.bias; give the model"),
    "both, and more": (
        "densenet_cut",
        {"fc__bias": None, "bn__weight": None, "extra": np.ones(1)},
        "does not fit densenet: it holds extra, and it lacks bn.weight and 1 more; give",
    ),
    "the next layer is narrower": (
        "vgg_cut",
        {"feature__4__weight": np.ones((6, 2, 3, 3))},
        r"holds feature.4.weight of shape \(6, 2, 3, 3\), and vgg takes \(6, 3, 3, 3\) there; give the model",
    ),
    "the norm is wider": (
        "vgg_cut",
        {"feature__1__running_var": np.ones(5)},
        r"feature.1.running_var of shape \(5,\), and vgg takes \(3,\)",
    ),
    "a bias is longer": (
        "vgg",
        {"feature__0__bias": np.ones(3)},
        r"feature.0.bias of shape \(3,\), and vgg takes \(8,\)",
    ),
    "other dimensions": (
        "vgg",
        {"feature__0__weight": np.ones(8)},
        r"feature.0.weight of shape \(8,\), and vgg takes \(8, 3, 3",
    ),
    "no channels": ("vgg_cut", {"feature__0__weight": np.ones((0, 3, 3, 3))}, "widths hold 0; each must be a positive"),
    "another map": (
        "vgg_imagenet",
        {"classifier__0__weight": np.ones((6, 30))},
        r"classifier.0.weight of shape \(6, 30\), and vgg_imagenet takes \(4096, 147\)",
    ),
    "wider than the full network": (
        "preresnet_cut",
        {"layer1__0__conv2__weight": np.ones((9, 2, 3, 3))},
        r"layer1.0.conv2.weight of shape \(9, 2, 3, 3\), and preresnet takes \(\d, \d, 3, 3\)",
    ),
    "an empty layer": (
        "preresnet_cut",
        {"layer1__0__bn2__weight": np.ones(0)},
        "holds an empty layer1.0.bn2.weight; take a network that was cut less",
    ),
    "a mask of another length": (
        "densenet_cut",
        {"trans1__select__indexes": np.ones(15)},
        r"holds trans1.select.indexes of shape \(15,\) at a norm of 12 channels; give the model",
    ),
    "a mask that selects other channels": (
        "densenet_cut",
        {"select__indexes": np.ones(20)},
        r"fc.weight of shape \(5, \d+\), and densenet takes \(5, 20\)",
    ),
    "a mask that selects nothing": (
        "densenet_cut",
        {"select__indexes": np.zeros(20)},
        "select.indexes, which selects no channel; take a network that was cut less",
    ),
}


@pytest.mark.parametrize("case", MISFITS)
def test_arrays_that_do_not_fit(case: str) -> None:
    name, arrays, message = MISFITS[case]
    with pytest.raises(InputError, match=f"^The state dict {message}|{message}"):
        read(name, changed(name, **arrays))


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ({}, "^The state dict holds a dict and no state dict; save torch.save"),
        ({"state_dict": {}}, "^The state dict holds a dict and no state dict"),
        ({"epoch": 3}, "^The state dict holds a int as epoch, and a state dict holds arrays only; save torch.save"),
        ({"a": np.array(["x"])}, "^The state dict holds a, which is no array of numbers .*; save torch.save"),
    ],
)
def test_dicts_that_are_no_state_dicts(source: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        read("vgg", source)


def test_models_that_are_not_known(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match=r"^There is no model 'vgg18'; the models are densenet"):
        jaxslim.from_pytorch({}, "vgg18")
    with pytest.raises(InputError, match=r"^model vgg19 does not take the model_args {'depth': 3}"):
        jaxslim.from_pytorch({}, "vgg19", depth=3)
    monkeypatch.setitem(models.MODELS, "mine", lambda **arguments: object())
    with pytest.raises(InputError, match=r"^mine is no network whose names in PyTorch are known; take one of VGG"):
        jaxslim.from_pytorch({}, "mine")


# ---------------------------------------------------------------------------------------------------------------------
# Files that cannot be read


class Touch:
    """A pickle of it makes a file when it is loaded."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)

    def __reduce__(self) -> Any:
        return os.mkdir, (self.path,)


def test_code_in_a_file_is_never_run(tmp_path: Path) -> None:
    """With PyTorch or without it; a file that would run code is refused."""
    marker, file = tmp_path / "marker", tmp_path / "net.pth"
    file.write_bytes(pickle.dumps({"feature.0.weight": Touch(marker)}, protocol=2))
    with pytest.raises(
        InputError, match=rf"^(Reading )?{re.escape(str(file))} (needs PyTorch|is no file of PyTorch|holds)"
    ):
        read("vgg", file)
    assert not marker.exists()


def test_numbers_of_numpy_beside_the_state_dict_are_read(tmp_path: Path) -> None:
    """As an accuracy that a training script has saved along."""
    torch = pytest.importorskip("torch", reason=NO_TORCH)
    kept = {"state_dict": {"a": torch.ones(2)}, "best": np.float64(93.2), "epoch": np.int64(3), "cfg": [4, "M"]}
    torch.save(kept, tmp_path / "net.pth")
    with pytest.raises(InputError, match="does not fit vgg: it holds a, and it lacks"):
        read("vgg", tmp_path / "net.pth")


def test_pickled_networks_are_refused(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch", reason=NO_TORCH)
    marker = tmp_path / "marker"
    torch.save({"state_dict": {"a": Touch(marker)}}, tmp_path / "code.pth")
    torch.save(torch.nn.Linear(2, 2), tmp_path / "module.pth")
    for file, what in (("code.pth", "posix.mkdir"), ("module.pth", "torch.nn.modules.linear.Linear")):
        with pytest.raises(
            InputError, match=f"{file} holds {what}, not only arrays, and loading it could run code; save"
        ):
            read("vgg", tmp_path / file)
    assert not marker.exists()


def test_damaged_files_of_pytorch(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch", reason=NO_TORCH)
    file = tmp_path / "net.pth"
    torch.save({"a": torch.ones(1000)}, file)
    whole = file.read_bytes()
    for content in (whole[: len(whole) // 2], b"", b"no pickle at all", pickle.dumps([1, 2])):
        file.write_bytes(content)
        with pytest.raises(
            InputError, match=r"net.pth (is no (whole )?file of PyTorch|holds a list and no state dict)"
        ):
            read("vgg", file)


def test_files_without_pytorch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    (tmp_path / "net.pth").write_bytes(b"")
    with pytest.raises(
        InputError, match=r"^Reading .*net.pth needs PyTorch; pip install torch, or convert it to .safete"
    ):
        read("vgg", tmp_path / "net.pth")


def test_files_that_are_no_safetensors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "net.safetensors"
    with pytest.raises(InputError, match=r"^There is no file .*net.safetensors; check the path"):
        read("vgg", file)
    content = save({"a": np.ones(64, np.float16)})
    for wrong in (b"", b"rubbish", content[:-5], content[:20]):
        file.write_bytes(wrong)
        with pytest.raises(InputError, match=r"net.safetensors is no safetensors file \(.*\); write it anew"):
            read("vgg", file)
    file.write_bytes(content.replace(b'"F16"', b'"BF16"').replace(b"__", b"__"))
    with pytest.raises(InputError, match=r"net.safetensors (is no safetensors file|holds numbers of type 'BF16')"):
        read("vgg", file)
    monkeypatch.setitem(sys.modules, "safetensors", None)
    with pytest.raises(InputError, match=r"needs the package safetensors: pip install safetensors"):
        read("vgg", file)


# ---------------------------------------------------------------------------------------------------------------------
# The command


def test_the_commands_work_on_an_imported_network(tmp_path: Path, capsys: Any, monkeypatch: Any) -> None:
    """Import, cut again, fine-tune: a network that was cut by channel selection."""
    monkeypatch.setenv("COLUMNS", "100")
    file, out = tmp_path / "net.safetensors", tmp_path / "net"
    save_file(state_of("densenet_cut"), file)
    data = write_data(tmp_path / "data.npz", classes=5)
    words = [file, "--model", "densenet", "--model-args", "depth=7", "growth=4", "--out", out, "--image-size", 8]
    done = invoke(capsys, importing, *words, "--dataset", data)
    assert done.code == 0, done.err
    assert done.out.startswith("network     DenseNet, cut (pruned)\nimages      8x8x3 of ")
    assert done.out.endswith(f"Saved {out}.\nNext: jaxslim evaluate {out}\n")
    module, variables, meta = jaxslim.load(out)
    assert isinstance(module, Narrow)
    assert_logits((module, variables), FILE["images"], FILE["logits/densenet_cut"])
    assert meta["imported"] == {"file": str(file), "model": "densenet"}
    assert meta["config"]["mean"] == [0.4914, 0.4822, 0.4465]
    assert models.kind(module) == "DenseNet, cut"
    save_cut(out, tmp_path / "smaller", 0.3)
    done = invoke(capsys, train_command, "--init-from", tmp_path / "smaller", "--epochs", 1, "--batch-size", 24)
    assert done.code == 0, done.err
    tuned, again, meta = jaxslim.load(tmp_path / "smaller-finetuned")
    assert meta["kind"] == "fine-tuned"
    assert tuned.full == module.full
    assert jax.tree.map(np.shape, again) == jax.tree.map(np.shape, jaxslim.load(tmp_path / "smaller").variables)


@pytest.mark.parametrize(
    ("name", "kind", "expected"),
    [
        ("vgg", "dense", {"dataset": "cifar10", "mean": [0.5] * 3, "image_size": 32}),
        ("vgg_cut", "pruned", {"dataset": "cifar10", "std": [0.5] * 3, "model": "vgg"}),
        ("resnet_bottleneck", "dense", {"dataset": "imagenet2012", "std": [0.229, 0.224, 0.225], "image_size": 224}),
    ],
)
def test_what_a_checkpoint_says_of_an_imported_network(tmp_path: Path, name: str, kind: str, expected: Any) -> None:
    save_file(state_of(name), tmp_path / "net.safetensors")
    model, arguments = ARGUMENTS[name]
    import_network(tmp_path / "net.safetensors", model, tmp_path / "net", model_args=arguments)
    meta = checkpoint.read_meta(tmp_path / "net")
    assert meta["kind"] == kind
    assert {field: meta["config"][field] for field in expected} == expected
    assert meta["image_shape"] == [meta["config"]["image_size"]] * 2 + [3]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["no.safetensors", "--model", "vgg19", "--out", "out"], "There is no file no.safetensors; check the path."),
        (["net.safetensors", "--model", "vgg", "--out", "out"], "model vgg does not take the model_args {}"),
        (["net.safetensors", "--model", "vgg18", "--out", "out"], "There is no model 'vgg18'; the models are densenet"),
        (
            ["net.safetensors", "--model", "vgg19", "--out", "out"],
            "net.safetensors does not fit vgg19: it holds feature.12.bias and 7 more, and it lacks feature.10",
        ),
        (["net.safetensors", "--model", "vgg19", "--out", "there"], "there exists already and checkpoints are never"),
        (["net.safetensors", "--model", "vgg19", "--out", ""], "--out is empty; give a folder to make."),
        (["rubbish.safetensors", "--model", "vgg19", "--out", "out"], "rubbish.safetensors is no safetensors file"),
        (
            [
                "net.safetensors",
                "--model",
                "vgg",
                "--model-args",
                "widths=8,M,6,7,M,9",
                "--out",
                "out",
                "--mean",
                "0.5",
            ],
            "mean has 1 numbers for 3 channels; give one a channel.",
        ),
    ],
)
def test_mistakes_get_one_message_and_leave_no_file(
    tmp_path: Path, capsys: Any, monkeypatch: Any, words: list[str], message: str
) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.chdir(tmp_path)
    save_file(state_of("vgg_cut"), "net.safetensors")
    Path("rubbish.safetensors").write_bytes(b"rubbish")
    Path("there").mkdir()
    before = sorted(tmp_path.iterdir())
    done = invoke(capsys, importing, *words)
    assert_one_message(done, message)
    assert done.out == ""
    assert flat(done.err).startswith("jaxslim: ")
    assert sorted(tmp_path.iterdir()) == before
