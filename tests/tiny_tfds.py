"""A tiny data set as TFDS stores it, without TensorFlow: records of protocol buffers in array_record files."""

import io
import json
from pathlib import Path

import numpy as np
from array_record.python.array_record_module import ArrayRecordWriter
from PIL import Image

FEATURES = "tensorflow_datasets.core.features."


def field(number: int, content: bytes) -> bytes:
    """A field of a protocol buffer that holds bytes."""
    size, length = len(content), b""
    while size >= 128:
        length, size = length + bytes([size % 128 | 128]), size >> 7
    return bytes([number << 3 | 2]) + length + bytes([size]) + content


def record(image: bytes, label: int) -> bytes:
    """A tf.train.Example of an image file and a label below 128."""
    values = {"image": field(1, field(1, image)), "label": field(3, field(1, bytes([label])))}
    features = [field(1, field(1, name.encode()) + field(2, value)) for name, value in values.items()]
    return field(1, b"".join(features))


def encoded(pixels: np.ndarray, kind: str = "PNG") -> bytes:
    """Pixels (h, w, 3) as an image file."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind)
    return file.getvalue()


def write(root: Path, splits: dict[str, list[tuple[bytes, int]]]) -> None:
    """Write image files and labels of each split as `cifar10`, version 3.0.2, with images of any size."""
    folder = root / "cifar10" / "3.0.2"
    folder.mkdir(parents=True)
    image = {"dtype": "uint8", "shape": {"dimensions": ["-1", "-1", "3"]}}
    kinds = {
        "image": {"image": image, "pythonClassName": f"{FEATURES}image_feature.Image"},
        "label": {"classLabel": {"numClasses": "10"}, "pythonClassName": f"{FEATURES}class_label_feature.ClassLabel"},
    }
    whole = {"featuresDict": {"features": kinds}, "pythonClassName": f"{FEATURES}features_dict.FeaturesDict"}
    (folder / "features.json").write_text(json.dumps(whole))
    (folder / "label.labels.txt").write_text("".join(f"class{number}\n" for number in range(10)))
    told = []
    for name, records in splits.items():
        stored = [record(*one) for one in records]
        told.append(
            {
                "filepathTemplate": "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}",
                "name": name,
                "numBytes": str(sum(map(len, stored))),
                "shardLengths": [str(len(stored))],
            }
        )
        writer = ArrayRecordWriter(str(folder / f"cifar10-{name}.array_record-00000-of-00001"), "group_size:1")
        for one in stored:
            writer.write(one)
        writer.close()
    keys = {"tuple": {"items": [{"featureKey": "image"}, {"featureKey": "label"}]}}
    info = {"fileFormat": "array_record", "name": "cifar10", "splits": told, "supervisedKeys": keys, "version": "3.0.2"}
    (folder / "dataset_info.json").write_text(json.dumps(info))
