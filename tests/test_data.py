"""Loading from every source, what each refuses, the cache, and what happens to images on the device."""

import errno
import gzip
import io
import json
import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from jaxslim import data
from jaxslim.data import folders, tfds
from jaxslim.errors import InputError

TFDS = Path(os.environ.get("TFDS_DATA_DIR") or Path(__file__).parents[2] / "shared" / "tfds")
CIFAR10 = TFDS / "cifar10" / "3.0.2"
TRAIN, TEST = (f"cifar10-{split}.array_record-00000-of-00001" for split in ("train", "test"))
needs_cifar10 = pytest.mark.skipif(
    not CIFAR10.is_dir(), reason="CIFAR-10 3.0.2 is not in TFDS_DATA_DIR; README.md says under Data how to prepare it"
)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """A cache of the test's own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "jaxslim" / "data"


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def pixels(rng, *shape):
    return rng.integers(0, 256, shape, np.uint8)


def assert_same(one: data.Dataset, other: data.Dataset) -> None:
    for left, right in zip(one[1:5], other[1:5], strict=True):
        assert left.dtype == right.dtype
        np.testing.assert_array_equal(left, right)
    assert one.class_names == other.class_names


# Names


def test_digits():
    small, large = data.load("digits", image_size=8, channels=1), data.load("digits")
    assert small.train_images.shape == (1437, 8, 8, 1)
    assert small.test_images.shape == (360, 8, 8, 1)
    assert large.train_images.shape == (1437, 32, 32, 3)
    assert small.name == "digits"
    assert small.class_names == tuple("0123456789")
    assert (small.train_images.min(), small.train_images.max()) == (0, 255)
    assert small.train_labels.dtype == np.int32
    shares = np.bincount(small.test_labels) / (np.bincount(small.test_labels) + np.bincount(small.train_labels))
    np.testing.assert_allclose(shares, 0.2, atol=0.01)  # stratified
    assert_same(small, data.load("digits", image_size=8, channels=1))
    np.testing.assert_array_equal(large.train_images[..., 0], large.train_images[..., 2])


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("cifar11", "did you mean .*cifar10"),
        ("digit", "did you mean digits"),
        ("", "is empty"),
        ("./nowhere", "no file or folder ./nowhere"),
        ("photos.npz", "no file or folder photos.npz"),
        ("mnist", r"mnist is not prepared in .*tfds(?s:.*)pip install tensorflow(?s:.*)file_format='array_record'"),
        ("imagenette/160px-v2", "imagenette/160px-v2 is not prepared"),
        ("cifar10:1.0.0", "TFDS cannot open cifar10:1.0.0"),
        ("eurosat/all", "holds no labelled images"),
    ],
)
def test_unusable_name(name, text, tmp_path):
    with pytest.raises(InputError, match=text):
        data.load(name, data_dir=str(tmp_path / "tfds"))


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"image_size": 0}, "image_size is 0 and channels 3"),
        ({"channels": 2}, "image_size is 32 and channels 2"),
        ({"image_size": 10_000}, r"take \d+ GiB.*lower image_size"),
    ],
)
def test_unusable_options(options, text):
    with pytest.raises(InputError, match=text):
        data.load("digits", **options)


def test_other_file(tmp_path):
    (tmp_path / "data.csv").write_text("1,2")
    with pytest.raises(InputError, match="is no data set; give an image folder"):
        data.load(str(tmp_path / "data.csv"))


# TFDS


@needs_cifar10
def test_cifar10(monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(TFDS))
    loaded = data.load("cifar10")
    assert loaded.train_images.shape == (50_000, 32, 32, 3)
    assert loaded.test_images.shape == (10_000, 32, 32, 3)
    mean = loaded.train_images.mean(axis=(0, 1, 2), dtype=np.float64) / 255
    np.testing.assert_allclose(mean, (0.4914, 0.4822, 0.4465), atol=1e-4)
    np.testing.assert_array_equal(np.bincount(loaded.train_labels), np.full(10, 5000))
    np.testing.assert_array_equal(np.bincount(loaded.test_labels), np.full(10, 1000))
    assert loaded.class_names[:3] == ("airplane", "automobile", "bird")


@pytest.fixture
def small_cifar10(tmp_path):
    """A copy of CIFAR-10's test split that also calls itself the training split."""
    folder = tmp_path / "tfds" / "cifar10" / "3.0.2"
    folder.mkdir(parents=True)
    for file in CIFAR10.iterdir():
        if "train.array_record" not in file.name:
            shutil.copyfile(file, folder / file.name)
    info = json.loads((folder / "dataset_info.json").read_text())
    info["splits"] = [{**info["splits"][1], "name": name} for name in ("train", "test")]
    (folder / "dataset_info.json").write_text(json.dumps(info))
    (folder / TRAIN).symlink_to(folder / TEST)
    return folder


def in_description(old, new):
    def change(folder):
        info = folder / "dataset_info.json"
        info.write_text(info.read_text().replace(old, new))

    return change


@needs_cifar10
@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda folder: (folder / TRAIN).unlink(), r"files of cifar10 cannot be read.*No such file"),
        (lambda folder: os.truncate(folder / TEST, 10_000_000), "files of cifar10 cannot be read"),
        (lambda folder: os.truncate(folder / "dataset_info.json", 300), r"TFDS cannot open cifar10(?s:.*)delete its"),
        (in_description("array_record", "tfrecord"), r"stored as tfrecord(?s:.*)file_format='array_record'"),
        (in_description('"train"', '"unlabelled"'), r"has the splits .*unlabelled.*needs train and test"),
    ],
)
def test_unusable_tfds(small_cifar10, change, text):
    change(small_cifar10)
    with pytest.raises(InputError, match=text):
        data.load("cifar10", data_dir=str(small_cifar10.parents[1]), image_size=8, channels=1)


@needs_cifar10
def test_tfds_validation_is_test(small_cifar10, caplog):
    in_description('"test"', '"validation"')(small_cifar10)
    tfds.find("cifar10", str(small_cifar10.parents[1]))
    assert "no test split; its validation split takes that place" in caplog.text


# Folders


@pytest.fixture
def folder(tmp_path, rng):
    """Two classes; known pixels in PNG, the same image twice in JPEG."""
    for split, count in (("train", 3), ("test", 2)):
        for label, name in enumerate(("ant", "bee")):
            place = tmp_path / "photos" / split / name
            place.mkdir(parents=True)
            for index in range(count):
                Image.fromarray(np.full((8, 8, 3), 100 * label + index, np.uint8)).save(place / f"{index}.png")
    Image.fromarray(np.full((40, 20, 3), 50, np.uint8)).save(tmp_path / "photos" / "train" / "bee" / "3.JPG")
    return tmp_path / "photos"


def load_folder(folder: Path, image_size: int = 8, channels: int = 3) -> data.Dataset:
    return data.load(str(folder), image_size=image_size, channels=channels)


def test_folder(folder, caplog):
    loaded = load_folder(folder)
    assert loaded.name == str(folder)
    assert loaded.class_names == ("ant", "bee")
    assert loaded.train_labels.tolist() == [0, 0, 0, 1, 1, 1, 1]
    assert loaded.train_images[:, 0, 0, 0].tolist() == [0, 1, 2, 100, 101, 102, 50]
    assert loaded.test_images[:, 7, 7, 2].tolist() == [0, 1, 100, 101]
    assert loaded.train_images.shape == (7, 8, 8, 3)
    assert caplog.messages == []


@pytest.mark.parametrize("suffix", ["jpg", "jpeg", "webp", "bmp", "tif", "TIFF", "gif"])
def test_folder_formats(folder, suffix):
    """Pixels of every format that is read, beside .png; some lose a little."""
    (folder / "test" / "bee" / "0.png").unlink()
    picture = np.full((8, 8, 3), (200, 100, 50), np.uint8)
    Image.fromarray(picture).save(folder / "test" / "bee" / f"0.{suffix}")
    np.testing.assert_allclose(load_folder(folder).test_images[2].astype(int), picture, atol=3)


@pytest.mark.parametrize("suffix", ["gif", "webp", "tiff"])
def test_folder_first_frame(folder, suffix):
    frames = [Image.new("RGB", (8, 8), (grey,) * 3) for grey in (200, 20, 120)]
    frames[0].save(folder / "train" / "ant" / f"0.{suffix}", save_all=True, append_images=frames[1:], lossless=True)
    loaded = load_folder(folder)
    np.testing.assert_array_equal(np.unique(loaded.train_images[:4, :, :, 0]), [0, 1, 2, 200])
    assert len(loaded.train_labels) == 8


def test_folder_names_what_is_skipped(folder, caplog):
    for name in ("train/ant/a.txt", "train/ant/b.heic", "train/bee/c.mov", "test/bee/d.txt", "train/notes.csv"):
        (folder / name).write_text("x")
    for name in ("train/ant/.DS_Store", ".git", "README.txt"):
        (folder / name).write_text("x")
    for name in ("train/.hidden", "train/bee/more.png"):
        (folder / name).mkdir()
    Image.new("L", (8, 8)).save(folder / "train" / "alone.webp")
    Image.new("L", (8, 8)).save(folder / "test" / "alone.png")
    assert len(load_folder(folder).train_labels) == 7
    assert caplog.messages == [
        f"{folder}: skipped 5 files or folders in class folders that are no images: "
        "train/ant/a.txt, train/ant/b.heic, train/bee/c.mov, ...",
        f"{folder}: skipped 2 images outside of class folders: train/alone.webp, test/alone.png",
    ]


@pytest.mark.parametrize("name", ["val", "valid", "validation"])
def test_folder_validation_is_test(folder, name):
    before = load_folder(folder)
    (folder / "test").rename(folder / name)
    assert_same(before, load_folder(folder))


@pytest.mark.parametrize(
    ("image", "rgb"),
    [
        (Image.new("L", (8, 8), 200), (200, 200, 200)),
        (Image.new("1", (8, 8), 1), (255, 255, 255)),
        (Image.new("RGB", (8, 8), (1, 2, 3)).quantize(4), (1, 2, 3)),
        (Image.new("RGBA", (8, 8), (255, 0, 100, 255)), (255, 0, 100)),
        (Image.new("RGBA", (8, 8), (255, 0, 100, 0)), (0, 0, 0)),
        (Image.new("LA", (8, 8), (90, 255)), (90, 90, 90)),
        (Image.fromarray(np.full((8, 8), 0x8012, np.uint16)), (128, 128, 128)),
    ],
    ids=["grey", "bits", "palette", "opaque", "transparent", "grey with alpha", "16 bits"],
)
def test_folder_modes(folder, image, rgb):
    image.save(folder / "train" / "ant" / "0.png")
    np.testing.assert_array_equal(load_folder(folder).train_images[0], np.full((8, 8, 3), rgb))


def test_folder_colours(folder):
    Image.new("CMYK", (8, 8), (0, 255, 255, 0)).save(folder / "train" / "ant" / "0.jpg", quality=95)
    red = load_folder(folder).train_images[0, 4, 4].astype(int)
    np.testing.assert_allclose(red, (255, 0, 0), atol=4)
    Image.new("RGB", (8, 8), (255, 0, 0)).save(folder / "train" / "ant" / "0.png")
    assert load_folder(folder, channels=1).train_images[1, 0, 0, 0] == 76  # 0.299 * 255


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp", "tif"])
def test_folder_rotated_by_exif(folder, suffix):
    exif = Image.Exif()
    exif[0x0112] = 3  # upside down
    picture = Image.new("L", (8, 8))
    picture.paste(255, (0, 0, 8, 4))
    (folder / "train" / "ant" / "0.png").unlink()
    picture.save(folder / "train" / "ant" / f"0.{suffix}", exif=exif)
    loaded = load_folder(folder, channels=1)
    assert loaded.train_images[0, 0, 0, 0] < 5
    assert loaded.train_images[0, 7, 0, 0] > 250


def break_image(folder):
    file = folder / "train" / "bee" / "1.png"
    file.write_bytes(file.read_bytes()[:40])


def put(image, **options):
    return lambda folder: image.save(folder / "train" / "bee" / "1.png", **options)


def empty_class(folder):
    (folder / "test" / "cat").mkdir()
    (folder / "test" / "cat" / "notes.txt").write_text("x")


def extra_class(folder):
    shutil.copytree(folder / "test" / "bee", folder / "test" / "cat")


def link_file_out(folder):
    Image.new("RGB", (8, 8)).save(folder.parent / "secret.png")
    (folder / "train" / "bee" / "4.png").symlink_to(folder.parent / "secret.png")


def link_class_out(folder):
    shutil.move(folder / "train" / "bee", folder.parent / "bee")
    (folder / "train" / "bee").symlink_to(folder.parent / "bee")


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (break_image, r"Cannot decode the image .*train/bee/1.png"),
        (put(Image.new("RGB", (8, 8)), format="PPM"), "Cannot decode the image .*train/bee/1.png .cannot identify"),
        (put(Image.fromarray(np.ones((8, 8), np.float32)), format="TIFF"), r"bee/1.png \(it has 32 bits a channel"),
        (put(Image.new("1", (10_000, 9_000))), "Cannot decode the image .*train/bee/1.png.*decompression bomb"),
        (empty_class, "class folder .*test/cat has no images .*.webp"),
        (extra_class, "class cat is in test but not in train"),
        (link_file_out, "4.png is a symbolic link that leads out"),
        (link_class_out, "bee is a symbolic link that leads out"),
        (lambda folder: (folder / "train" / "ant" / "9.png").symlink_to(folder / "gone.png"), "Cannot read .*9.png"),
        (lambda folder: shutil.rmtree(folder / "test"), "no folder test .or val"),
        (lambda folder: shutil.rmtree(folder / "train"), "no folder train"),
        (lambda folder: [shutil.rmtree(place) for place in (folder / "test").iterdir()], "test has no class folders"),
    ],
)
def test_unusable_folder(folder, change, text):
    change(folder)
    with pytest.raises(InputError, match=text):
        load_folder(folder)


def test_folder_links_inside(folder):
    (folder / "train" / "bee" / "4.png").symlink_to(folder / "train" / "ant" / "1.png")
    assert load_folder(folder).train_images[-1, 0, 0, 0] == 1


PIPES = """
import sys
from jaxslim import data
from jaxslim.errors import InputError
for dataset in sys.argv[1:]:
    try:
        data.load(dataset)
    except InputError as error:
        print(error)
"""


def test_pipes_are_refused_and_not_waited_for(folder, tmp_path):
    """In a process of its own, with a time limit, since a wait for a pipe has no end."""
    pipes = {
        folder: "photos/train/ant/9.png",
        tmp_path / "pipe.npz": "pipe.npz",
        tmp_path / "pipe.tar.gz": "pipe.tar.gz",
        tmp_path / "cifar": "cifar/batches.meta.txt",
    }
    for pipe in pipes.values():
        (tmp_path / pipe).parent.mkdir(parents=True, exist_ok=True)
        os.mkfifo(tmp_path / pipe)
    (tmp_path / "cifar" / "test_batch.bin").write_bytes(b"x")
    done = subprocess.run([sys.executable, "-c", PIPES, *pipes], capture_output=True, text=True, timeout=60)
    assert done.stdout.splitlines() == [
        f"{tmp_path / pipe} is no regular file; replace or remove it." for pipe in pipes.values()
    ], done.stderr


@pytest.mark.parametrize("cause", [OSError(errno.EIO, "Input/output error"), PermissionError(errno.EACCES, "Denied")])
def test_a_failing_disk_is_no_damage(folder, tmp_path, arrays, monkeypatch, cause):
    def fail(*_, **__):
        raise cause

    np.savez(tmp_path / "data.npz", **arrays)
    monkeypatch.setattr(Image, "open", fail)
    monkeypatch.setattr(zipfile, "ZipFile", fail)
    for path, file in ((folder, folder / "train" / "ant" / "0.png"), (tmp_path / "data.npz", tmp_path / "data.npz")):
        with pytest.raises(InputError, match=f"^Cannot read {file}: {cause.strerror}.$"):
            data.load(str(path))


# The cache


def test_cache_replaces_decoding(folder, cache, monkeypatch):
    first = load_folder(folder)
    monkeypatch.setattr(folders, "_decode", None)
    assert_same(first, load_folder(folder))
    assert len(list(cache.iterdir())) == 1


def test_cache_follows_the_source(folder, cache):
    load_folder(folder)
    Image.fromarray(np.full((8, 8, 3), 77, np.uint8)).save(folder / "train" / "ant" / "0.png")
    assert load_folder(folder).train_images[0, 0, 0, 0] == 77
    assert load_folder(folder, image_size=4).train_images.shape == (7, 4, 4, 3)
    assert load_folder(folder, channels=1).train_images.shape == (7, 8, 8, 1)
    assert len(list(cache.iterdir())) == 4


def test_cache_damaged(folder, cache):
    first = load_folder(folder)
    (file,) = cache.iterdir()
    whole = file.read_bytes()
    file.write_bytes(whole[:300] + bytes([whole[300] ^ 1]) + whole[301:])
    assert_same(first, load_folder(folder))
    assert file.read_bytes()[:301] == whole[:301]
    assert len(file.read_bytes()) == len(whole)


def test_cache_disk_full(folder, cache, caplog, monkeypatch):
    def savez(file, **arrays):
        file.write(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "savez", savez)
    assert len(load_folder(folder).train_labels) == 7
    assert "Cannot cache decoded images" in caplog.text
    assert "No space left" in caplog.text
    assert list(cache.iterdir()) == []


# .npz


@pytest.fixture
def arrays(rng):
    return {
        "train_images": pixels(rng, 6, 8, 8, 3),
        "train_labels": np.array([0, 1, 2, 0, 1, 2]),
        "test_images": pixels(rng, 3, 8, 8, 3),
        "test_labels": np.array([2, 1, 3]),
    }


def save_and_load(tmp_path, arrays, **options) -> data.Dataset:
    np.savez(tmp_path / "data.npz", **arrays)
    return data.load(str(tmp_path / "data.npz"), **{"image_size": 8, **options})


def test_npz(tmp_path, arrays, cache):
    loaded = save_and_load(tmp_path, arrays)
    for name, array in arrays.items():
        np.testing.assert_array_equal(getattr(loaded, name), array)
    assert loaded.train_labels.dtype == np.int32
    assert loaded.class_names == ("0", "1", "2", "3")
    assert not cache.exists()
    named = save_and_load(tmp_path, {**arrays, "class_names": list("abcde")})
    assert named.class_names == ("a", "b", "c", "d", "e")
    (tmp_path / "link.npz").symlink_to(tmp_path / "data.npz")
    assert_same(named, data.load(str(tmp_path / "link.npz"), image_size=8))


def test_npz_keras_names_and_shapes(tmp_path, arrays):
    keras = {
        "x_train": np.asfortranarray(arrays["train_images"][..., 0]),
        "y_train": np.array([[0], [1], [2], [0], [1], [255]], np.uint8),
        "x_test": arrays["test_images"][..., 0],
        "y_test": arrays["test_labels"].astype(np.uint64),
    }
    loaded = save_and_load(tmp_path, keras)
    np.testing.assert_array_equal(loaded.train_images, np.repeat(keras["x_train"][..., None], 3, axis=3))
    np.testing.assert_array_equal(loaded.train_labels, [0, 1, 2, 0, 1, 255])
    assert len(loaded.class_names) == 256
    assert save_and_load(tmp_path, keras, channels=1, image_size=5).test_images.shape == (3, 5, 5, 1)


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"train_images": np.zeros((6, 8, 8, 3), np.float32)}, "train_images .* is float32 .*convert it to uint8"),
        ({"train_images": np.zeros((6, 3, 8, 8), np.uint8)}, r"uint8 of shape \(6, 3, 8, 8\).*transpose"),
        ({"train_images": np.zeros((6, 8), np.uint8)}, r"shape \(6, 8\)"),
        ({"train_images": np.zeros((6, 0, 8, 3), np.uint8)}, r"shape \(6, 0, 8, 3\)"),
        ({"train_images": np.zeros((5, 8, 8, 3), np.uint8)}, "5 train_images but 6 train_labels"),
        ({"train_labels": np.zeros(6)}, "train_labels .* is float64"),
        ({"train_labels": np.zeros((6, 2), int)}, "one integer per image, "),
        ({"train_labels": np.array([0, 1, 2, 0, 1, -1])}, "train labels from -1 to 2"),
        ({"train_labels": np.array([0, 1, 2, 0, 1, 2**40])}, "train labels from 0 to 1099511627776"),
        ({"class_names": ["a", "b"]}, "train labels from 0 to 2; number the classes from 0 to 1"),
        ({"class_names": np.arange(4)}, "must be a list of strings"),
        ({"test_images": np.zeros((0, 8, 8, 3), np.uint8), "test_labels": np.zeros(0, int)}, "no images in its test"),
        ({"test_images": None}, "lacks test_images; save it with numpy.savez"),
        ({"class_names": np.array(["a", "b"], object)}, "class_names .* is a pickled array, which is unsafe"),
    ],
)
def test_unusable_npz(tmp_path, arrays, changes, text):
    changed = {name: array for name, array in {**arrays, **changes}.items() if array is not None}
    with pytest.raises(InputError, match=text):
        save_and_load(tmp_path, changed)


@pytest.mark.parametrize("content", ["text", "truncated", "flipped"])
def test_damaged_npz(tmp_path, arrays, content):
    file = tmp_path / "data.npz"
    np.savez(file, **arrays)
    whole = file.read_bytes()
    flipped = whole[:400] + bytes([whole[400] ^ 1]) + whole[401:]
    file.write_bytes({"text": b"hello", "truncated": whole[:-100], "flipped": flipped}[content])
    with pytest.raises(InputError, match=r"is no .npz archive, or it is damaged"):
        data.load(str(file))


def test_npz_that_claims_too_much(tmp_path):
    header = io.BytesIO()
    fields = {"descr": "|u1", "fortran_order": False, "shape": (10**9, 32, 32, 3)}
    np.lib.format.write_array_header_1_0(header, fields)
    with zipfile.ZipFile(tmp_path / "data.npz", "w") as archive:
        archive.writestr("train_images.npy", header.getvalue() + bytes(100))
    with pytest.raises(InputError, match=r"claims a shape that it does not hold, \(1000000000, 32, 32, 3\)"):
        data.load(str(tmp_path / "data.npz"))


# CIFAR binary archives


def records(labels: list[list[int]], images: np.ndarray) -> bytes:
    """Label bytes, then planes, of images (n, 32, 32, 3)."""
    planes = images.transpose(0, 3, 1, 2).reshape(len(images), -1)
    return np.concatenate([np.array(labels, np.uint8), planes], axis=1).tobytes()


def save_tar(path: Path, files: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w:gz") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(f"cifar-batches-bin/{name}")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return path


@pytest.fixture
def cifar10(rng):
    """Files of CIFAR-10 with two images a batch, and all images in order."""
    images = pixels(rng, 12, 32, 32, 3)
    files = {f"data_batch_{i + 1}.bin": records([[i], [9 - i]], images[2 * i : 2 * i + 2]) for i in range(5)}
    files["test_batch.bin"] = records([[3], [4]], images[10:])
    files["batches.meta.txt"] = b"\n".join(b"class%d" % i for i in range(10)) + b"\n\n"
    return files, images


def test_cifar10_archive(tmp_path, cifar10, monkeypatch):
    files, images = cifar10
    path = save_tar(tmp_path / "cifar-10-binary.tar.gz", dict(sorted(files.items(), reverse=True)))
    loaded = data.load(str(path))
    np.testing.assert_array_equal(loaded.train_images, images[:10])
    np.testing.assert_array_equal(loaded.test_images, images[10:])
    assert loaded.train_labels.tolist() == [0, 9, 1, 8, 2, 7, 3, 6, 4, 5]
    assert loaded.test_labels.tolist() == [3, 4]
    assert loaded.class_names == tuple(f"class{i}" for i in range(10))
    monkeypatch.setattr("jaxslim.data.archives._members", None)  # what follows comes from the cache
    assert_same(loaded, data.load(str(path)))


def test_cifar10_folder(tmp_path, cifar10):
    files, _ = cifar10
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    loaded = data.load(str(tmp_path), image_size=16, channels=1)
    assert loaded.train_images.shape == (10, 16, 16, 1)
    (tmp_path / "data_batch_3.bin").unlink()
    with pytest.raises(InputError, match=r"lacks data_batch_3.bin; give the binary version"):
        data.load(str(tmp_path))


def test_cifar100_archive(tmp_path, rng):
    images = pixels(rng, 3, 32, 32, 3)
    files = {
        "train.bin": records([[1, 99], [2, 50]], images[:2]),
        "test.bin": records([[3, 7]], images[2:]),
        "coarse_label_names.txt": b"no\n",
    }
    loaded = data.load(str(save_tar(tmp_path / "cifar-100-binary.tar.gz", files)))
    np.testing.assert_array_equal(loaded.train_images, images[:2])
    assert loaded.train_labels.tolist() == [99, 50]
    assert loaded.test_labels.tolist() == [7]
    assert len(loaded.class_names) == 100


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"test_batch.bin": None, "data_batch_2.bin": None}, "lacks data_batch_2.bin, test_batch.bin"),
        ({"data_batch_1.bin": bytes(3074)}, "data_batch_1.bin .* has 3074 bytes, no multiple of 3073"),
        ({"data_batch_1.bin": b""}, "data_batch_1.bin .* has 0 bytes"),
        ({"data_batch_1.bin": b"\xff" * 3073}, "train labels from 1 to 255"),
        ({"batches.meta.txt": b"cat\ndog\n"}, "batches.meta.txt .* has 2 names, not 10"),
    ],
)
def test_unusable_cifar(tmp_path, cifar10, changes, text):
    files = {name: content for name, content in {**cifar10[0], **changes}.items() if content is not None}
    with pytest.raises(InputError, match=text):
        data.load(str(save_tar(tmp_path / "cifar-10-binary.tar.gz", files)))


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: content[: len(content) // 2],
        lambda content: content[:-8] + bytes([content[-8] ^ 1]) + content[-7:],  # the checksum
        lambda content: gzip.compress(b"hello" * 1000),
        lambda content: b"hello",
        lambda content: b"",
    ],
    ids=["cut", "checksum", "no tar", "no gzip", "empty"],
)
def test_damaged_cifar(tmp_path, cifar10, damage):
    path = save_tar(tmp_path / "cifar-10-binary.tar.gz", cifar10[0])
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(InputError, match="is no tar archive, or it is damaged"):
        data.load(str(path))


def test_archives_over_the_limit(tmp_path, arrays, cifar10, monkeypatch):
    path = save_tar(tmp_path / "cifar-10-binary.tar.gz", cifar10[0])
    monkeypatch.setattr("jaxslim.data.archives.MAX_BYTES", 1000)
    with pytest.raises(InputError, match="is no CIFAR archive"):
        data.load(str(path))
    with pytest.raises(InputError, match="claims more than"):
        save_and_load(tmp_path, arrays)


# Holding out


def numbered(count: int) -> data.Dataset:
    labels = np.arange(count, dtype=np.int32)
    images = np.broadcast_to(labels[:, None, None, None], (count, 2, 2, 1)).astype(np.uint8)
    return data.Dataset("numbered", images, labels, images[:2], labels[:2], tuple(map(str, labels)))


def test_hold_out():
    rest, images, labels = data.hold_out(numbered(100), 0.2, seed=1)
    assert (len(rest.train_labels), len(labels)) == (80, 20)
    assert sorted([*rest.train_labels, *labels]) == list(range(100))
    assert rest.train_labels.tolist() == sorted(rest.train_labels)  # in their order
    np.testing.assert_array_equal(images[:, 0, 0, 0], labels)
    np.testing.assert_array_equal(rest.train_images[:, 0, 0, 0], rest.train_labels)
    np.testing.assert_array_equal(labels, data.hold_out(numbered(100), 0.2, seed=1)[2])
    assert labels.tolist() != data.hold_out(numbered(100), 0.2, seed=2)[2].tolist()


@pytest.mark.parametrize("share", [0.0, 0.01, 0.99, 1.0, -0.5, float("nan")])
def test_hold_out_leaves_none(share):
    with pytest.raises(InputError, match="leaves none on one side"):
        data.hold_out(numbered(10), share, seed=0)


# On the device


def shifts(images: np.ndarray, pad: int) -> np.ndarray:
    """What `crop` can make of images (n, h, w, c): ((2 * pad + 1)^2, n, h, w, c)."""
    _, height, width, _ = images.shape
    padded = np.pad(images, ((0, 0), (pad, pad), (pad, pad), (0, 0)))
    starts = range(2 * pad + 1)
    return np.stack([padded[:, y : y + height, x : x + width] for y in starts for x in starts])


def which(results, candidates: np.ndarray) -> np.ndarray:
    """Whether each of `results` (n, h, w, c) is its candidate: bool (candidates, n)."""
    return (np.asarray(results) == candidates).all(axis=(2, 3, 4))


@pytest.mark.parametrize("pad", [0, 1, 2])
def test_crop_only_shifts_and_reaches_every_shift(rng, pad):
    images = pixels(rng, 400, 6, 5, 3) | 1  # no pixel is as black as the padding
    cropped = jax.jit(data.augmenter(["crop"], pad=pad))(images, jax.random.key(0))
    assert cropped.dtype == np.uint8
    found = which(cropped, shifts(images, pad))
    assert (found.sum(axis=0) == 1).all()
    assert found.any(axis=1).all()


@pytest.mark.parametrize("names", [["flip"], ["flip", "flip"]])
def test_flip_only_mirrors_half(rng, names):
    """Twice too, since every augmentation draws for itself."""
    images = pixels(rng, 1000, 4, 4, 1)
    flipped = data.augmenter(names)(jnp.asarray(images), jax.random.key(0))
    kept, mirrored = which(flipped, np.stack([images, images[:, :, ::-1]]))
    assert (kept != mirrored).all()
    assert 450 < mirrored.sum() < 550


def test_augmentation_by_key_and_by_none(rng):
    augment, images = data.augmenter(("crop", "flip")), jnp.asarray(pixels(rng, 20, 8, 8, 3))
    one, same, other = (augment(images, jax.random.key(seed)) for seed in (0, 0, 1))
    np.testing.assert_array_equal(one, same)
    assert (one != other).any()
    np.testing.assert_array_equal(jax.jit(data.augmenter(()))(images, jax.random.key(0)), images)


def test_own_augmentations_in_the_order_of_their_names(monkeypatch):
    monkeypatch.setitem(data.AUGMENTATIONS, "brighten", lambda images, key, pad: images + jnp.uint8(pad))
    monkeypatch.setitem(data.AUGMENTATIONS, "double", lambda images, key, pad: images * jnp.uint8(2))
    images, key = jnp.full((2, 4, 4, 1), 10, jnp.uint8), jax.random.key(0)
    assert (data.augmenter(["brighten", "double"], pad=3)(images, key) == 26).all()
    assert (data.augmenter(["double", "flip", "brighten"], pad=3)(images, key) == 23).all()


def test_unknown_augmentation():
    with pytest.raises(
        InputError, match=r"^There is no augmentation 'blur'; use crop, flip, resized-crop, or no name at all.$"
    ):
        data.augmenter(["flip", "blur"])


SHARDED = """
import jax, numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from jaxslim.data import augmenter
mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
images = np.random.default_rng(0).integers(0, 256, (64, 16, 16, 3), np.uint8)
step = jax.jit(augmenter(("crop", "flip")))
sharded = step(jax.device_put(images, NamedSharding(mesh, PartitionSpec("data"))), jax.random.key(3))
assert len(sharded.sharding.device_set) == 8 and not sharded.sharding.is_fully_replicated
np.testing.assert_array_equal(sharded, step(images, jax.random.key(3)))
"""


def test_augmentation_of_a_sharded_batch_equals_one_device():
    environment = {**os.environ, "JAX_NUM_CPU_DEVICES": "8", "JAX_PLATFORMS": "cpu"}
    environment.pop("XLA_FLAGS", None)
    result = subprocess.run(
        [sys.executable, "-c", SHARDED], env=environment, capture_output=True, text=True, timeout=120
    )
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_normalise(dtype):
    images = jnp.asarray(np.array([0, 51, 255], np.uint8).reshape(1, 1, 1, 3))
    result = data.normalise(images, (0.5, 0.1, 0.0), (0.5, 0.2, 2.0), dtype)
    assert result.dtype == dtype
    np.testing.assert_allclose(np.asarray(result, np.float32).ravel(), (-1.0, 0.5, 0.5), rtol=1e-6)
    grey = data.normalise(jnp.full((2, 4, 4, 1), 255, jnp.uint8), (0.5,), (0.25,), dtype)
    np.testing.assert_array_equal(grey, np.full((2, 4, 4, 1), 2.0))
