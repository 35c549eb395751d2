"""ONNX files as models: which are taken, what they say of themselves, and how they run.

The files are put together here, operator by operator, so that nothing of the exporter is needed.
"""

from __future__ import annotations

import pickle
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import colorcore
from colorcore.colorizing.onnx_facts import (
    MAX_BYTES,
    OnnxFacts,
    OnnxFileError,
    facts_of,
    read_facts,
)
from colorcore.colorizing.onnx_file import OnnxColorizer, is_onnx, load_onnx
from colorcore.decoding import Decoding
from colorcore.storage.location import open_store

FACTS = OnnxFacts(
    model="Sunset",
    size=16,
    decoding=Decoding(0.5, 2.0),
    recipe={"model": {"name": "lite-bins"}, "loss": {"bins_ce": 1.0}},
    dataset="0123",
    mean_ab=(1.5, -2.25),
    palette={
        "centroids": np.array([[0.1, 2], [3, 4], [-5, 6.7]], np.float32),
        "priors": np.array([0.5, 0.25, 0.25], np.float32),
        "weights": np.array([0.7, 1.1, 1.5], np.float32),
    },
    about={"method": "kmeans"},
    changes={"int8": {"photos": 3}},
    licence="none",
    version="0.0",
)


def sunset(facts: OnnxFacts | None = FACTS) -> onnx.ModelProto:
    """a = .1 L chroma and b = L temperature chroma, for any batch and size."""
    batch = ["batch", 1, "height", "width"]
    nodes = [
        helper.make_node("Mul", ["L", "tenth"], ["a"]),
        helper.make_node("Mul", ["L", "temperature"], ["b"]),
        helper.make_node("Concat", ["a", "b"], ["plain"], axis=1),
        helper.make_node("Mul", ["plain", "chroma"], ["ab"]),
    ]
    graph = helper.make_graph(
        nodes,
        "sunset",
        [
            helper.make_tensor_value_info("L", TensorProto.FLOAT, batch),
            helper.make_tensor_value_info("chroma", TensorProto.FLOAT, []),
            helper.make_tensor_value_info("temperature", TensorProto.FLOAT, []),
        ],
        [helper.make_tensor_value_info("ab", TensorProto.FLOAT, ["batch", 2, "height", "width"])],
        [
            numpy_helper.from_array(np.float32(value).reshape(()), name)
            for name, value in (("tenth", 0.1), ("chroma", 2.0), ("temperature", 0.5))
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    if facts is not None:
        helper.set_model_props(model, facts.as_metadata())
    onnx.checker.check_model(model)
    return model


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "sunset.onnx"
    path.write_bytes(sunset().SerializeToString())
    return path


def lightness(*shape: int) -> np.ndarray:
    return np.linspace(0, 100, int(np.prod(shape)), dtype=np.float32).reshape(shape)


# What the file says


def test_facts_come_back_as_they_were(file: Path) -> None:
    found = read_facts(file.read_bytes(), str(file))
    for name in ("centroids", "priors", "weights"):
        assert np.array_equal(found.palette[name], FACTS.palette[name])
        assert found.palette[name].dtype == np.float32
    assert replace(found, palette={}) == replace(FACTS, palette={})


def test_metadata_are_text_that_a_person_can_read() -> None:
    metadata = FACTS.as_metadata()
    assert metadata["colorcore.format"] == "1"
    assert metadata["colorcore.size"] == "16"
    assert "0..100" in metadata["colorcore.input"]
    assert "ab: float32" in metadata["colorcore.output"]


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("format", "2", "expected export format 1, found '2'"),
        ("size", "0", "expected a size in 1..4096, found 0"),
        ("size", "many", "damaged: ValueError"),
        ("decoding", '{"temperature": -1, "chroma": 1}', "temperature must be above 0"),
        ("decoding", '{"heat": 1}', "damaged: TypeError"),
        ("mean_ab", "[1]", "damaged: ValueError"),
        ("palette", "{}", "damaged: KeyError"),
        ("palette", '{"about": {}, "centroids": "?", "priors": "", "weights": ""}', "damaged"),
        ("recipe", "no", "damaged"),
    ],
)
def test_damaged_metadata_are_named(key: str, value: str, message: str) -> None:
    metadata = {**FACTS.as_metadata(), f"colorcore.{key}": value}
    with pytest.raises(OnnxFileError, match=message) as caught:
        facts_of(metadata, "x.onnx")
    assert "x.onnx" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_key_is_named() -> None:
    metadata = FACTS.as_metadata()
    del metadata["colorcore.dataset"]
    with pytest.raises(OnnxFileError, match="'dataset'"):
        facts_of(metadata, "x.onnx")


# Which files are taken


@pytest.mark.parametrize("content", [b"", b"not an ONNX file", b"\x08\x0a\x12" + b"\xff" * 40])
def test_what_is_no_onnx_file_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "x.onnx"
    path.write_bytes(content)
    with pytest.raises(OnnxFileError, match=r"x\.onnx"):
        load_onnx(path)


def test_no_part_of_a_file_is_taken_for_it(file: Path, tmp_path: Path) -> None:
    data = file.read_bytes()
    part = tmp_path / "part.onnx"
    for length in range(0, len(data), 97):
        part.write_bytes(data[:length])
        with pytest.raises(OnnxFileError):
            load_onnx(part)


def test_a_foreign_file_is_told_what_was_expected(tmp_path: Path) -> None:
    path = tmp_path / "foreign.onnx"
    path.write_bytes(sunset(None).SerializeToString())
    with pytest.raises(OnnxFileError, match="expected an ONNX file that cc export wrote"):
        load_onnx(path)


def external(model: onnx.ModelProto) -> None:
    tensor = model.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="../../etc/passwd")


def in_an_attribute(model: onnx.ModelProto) -> None:
    tensor = numpy_helper.from_array(np.float32(1.0).reshape(()), "hidden")
    node = helper.make_node("Constant", [], ["hidden"], value=tensor)
    model.graph.node.append(node)
    external_tensor = model.graph.node[-1].attribute[0].t
    external_tensor.ClearField("raw_data")
    external_tensor.data_location = TensorProto.EXTERNAL
    external_tensor.external_data.add(key="location", value="weights.bin")


def custom_operator(model: onnx.ModelProto) -> None:
    model.graph.node[0].domain = "evil.ops"


def custom_opset(model: onnx.ModelProto) -> None:
    model.opset_import.append(helper.make_opsetid("evil.ops", 1))


def loop(model: onnx.ModelProto) -> None:
    body = helper.make_graph([], "body", [], [])
    model.graph.node.append(helper.make_node("Loop", ["", ""], ["never"], body=body))


def function(model: onnx.ModelProto) -> None:
    made = helper.make_function(
        "", "Mine", ["x"], ["y"], [helper.make_node("Identity", ["x"], ["y"])],
        [helper.make_opsetid("", 20)],
    )  # fmt: skip
    model.functions.append(made)


@pytest.mark.parametrize(
    ("damage", "found"),
    [
        (external, "weights in another file"),
        (in_an_attribute, "weights in another file"),
        (custom_operator, "the domain 'evil.ops'"),
        (custom_opset, "the domain 'evil.ops'"),
        (loop, r"a nested graph \(Loop\)"),
        (function, "functions"),
    ],
)
def test_what_an_export_never_holds_is_refused(
    tmp_path: Path, damage: Callable[[onnx.ModelProto], None], found: str
) -> None:
    model = sunset()
    damage(model)
    path = tmp_path / "x.onnx"
    path.write_bytes(model.SerializeToString())
    with pytest.raises(OnnxFileError, match=found):
        load_onnx(path)


def test_a_graph_that_onnxruntime_cannot_run_is_refused(tmp_path: Path) -> None:
    model = sunset()
    model.graph.node[0].op_type = "Multiply"
    path = tmp_path / "x.onnx"
    path.write_bytes(model.SerializeToString())
    with pytest.raises(OnnxFileError, match=r"onnxruntime cannot run .*x\.onnx") as caught:
        load_onnx(path)
    assert "\n" not in str(caught.value)


def test_a_file_that_is_too_large_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "huge.onnx"
    with path.open("wb") as sparse:
        sparse.truncate(MAX_BYTES + 1)
    with pytest.raises(OnnxFileError, match="at most 1,073,741,824 bytes"):
        load_onnx(path)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(OnnxFileError, match=r"found no file .*none\.onnx"):
        load_onnx(tmp_path / "none.onnx")


def test_files_are_told_by_their_names(tmp_path: Path) -> None:
    (tmp_path / "folder.onnx").mkdir()
    for place in ("x.onnx", "X.ONNX", Path("a/x.onnx"), "s3://bucket/x.onnx?scheme=http"):
        assert is_onnx(place)
    assert is_onnx(open_store("s3://bucket/x.onnx"))
    for place in ("start", "x.onnx/best", str(tmp_path / "folder.onnx"), "s3://b/x?y=.onnx"):
        assert not is_onnx(place)


# How it runs


def test_defaults_are_the_files_and_other_settings_are_taken(file: Path) -> None:
    model = colorcore.load(file)
    assert isinstance(model, OnnxColorizer)
    assert (model.name, model.size, model.decoding) == ("Sunset", 16, Decoding(0.5, 2.0))
    assert model.predicts_bins
    L = lightness(2, 1, 5, 7)
    ab = model.predict_ab(L)
    assert ab.shape == (2, 2, 5, 7)
    assert ab.dtype == np.float32
    assert np.allclose(ab, np.concatenate([0.2 * L, L], axis=1))
    other = model.with_decoding(temperature=0.1, chroma=3.0)
    assert np.allclose(other.predict_ab(L), np.concatenate([0.3 * L, 0.3 * L], axis=1))
    assert np.allclose(model.predict_ab(L), ab), "another decoding changed the first one"


def test_a_program_need_not_know_of_temperature_and_chroma(file: Path) -> None:
    import onnxruntime as ort

    session = ort.InferenceSession(file.read_bytes(), providers=["CPUExecutionProvider"])
    assert [each.name for each in session.get_inputs()] == ["L"]
    L = lightness(1, 1, 3, 4)
    (ab,) = session.run(None, {"L": L})
    assert np.allclose(ab, np.concatenate([0.2 * L, L], axis=1))


def test_it_colourizes_images_of_any_size(file: Path) -> None:
    model = colorcore.load(str(file)).with_decoding(chroma=0.5)
    for shape in ((40, 30), (1, 1), (9, 200)):
        grey = np.full(shape, 128, np.uint8)
        assert model.colorize(grey).shape == (*shape, 3)
    # L 53.6: a = 2.7, b = 13.4
    r, g, b = model.colorize(np.full((40, 30), 128, np.uint8))[20, 15].astype(int)
    assert r > g > b


def test_it_can_be_sent_to_another_process(file: Path) -> None:
    model = colorcore.load(file).with_decoding(chroma=1.5)
    sent = pickle.loads(pickle.dumps(model))  # noqa: S301 - our own bytes
    file.unlink()
    L = lightness(1, 1, 4, 4)
    assert np.array_equal(sent.predict_ab(L), model.predict_ab(L))
    assert sent.decoding == model.decoding


def test_threads_change_nothing_but_speed(file: Path) -> None:
    model = load_onnx(file)
    L = lightness(1, 1, 64, 64)
    before = model.predict_ab(L)
    assert np.array_equal(model.use_threads(1).predict_ab(L), before)


@pytest.mark.parametrize("device", ["tpu", "cuda:x", "cpu:0", "mps"])
def test_other_devices_are_refused(file: Path, device: str) -> None:
    with pytest.raises(ValueError, match="expected the device cpu or cuda"):
        load_onnx(file).to(device)


def test_cuda_needs_its_provider(file: Path) -> None:
    import onnxruntime as ort

    if "CUDAExecutionProvider" in ort.get_available_providers():
        pytest.skip("onnxruntime has CUDA here")  # so there is no error to look at
    with pytest.raises(ValueError, match="onnxruntime has no CUDA here; install onnxruntime-gpu"):
        load_onnx(file, "cuda:0")


def test_it_has_one_answer(file: Path) -> None:
    with pytest.raises(
        ValueError, match="expected a checkpoint for 3 versions, got an exported file"
    ):
        load_onnx(file).with_versions(3)


def test_a_model_without_bins_has_no_temperature(tmp_path: Path) -> None:
    model = sunset(replace(FACTS, decoding=Decoding(None, 2.0)))
    path = tmp_path / "x.onnx"
    path.write_bytes(model.SerializeToString())
    with pytest.raises(ValueError, match="temperature needs a model that predicts bins"):
        load_onnx(path).with_decoding(temperature=0.5)


@pytest.mark.slow
def test_the_file_is_read_from_an_object_store(file: Path, bucket: str, s3_server: Any) -> None:
    place = s3_server.uri(bucket, "models/sunset.onnx")
    open_store(s3_server.uri(bucket)).write("models/sunset.onnx", file.read_bytes())
    found = colorcore.load(place)
    L = lightness(1, 1, 4, 4)
    assert np.array_equal(found.predict_ab(L), colorcore.load(file).predict_ab(L))
    with pytest.raises(OnnxFileError, match="found no file"):
        colorcore.load(place.replace("sunset", "none"))


def test_torch_stays_away(file: Path) -> None:
    """From start to finish, for a photo in Python and for `cc colorize`'s modules."""
    code = (
        "import sys, numpy as np, colorcore\n"
        f"model = colorcore.load({str(file)!r})\n"
        "model.colorize(np.full((40, 50), 99, np.uint8))\n"
        "import pipelines.album.colorize\n"
        "print(sorted({'torch', 'kornia', 'scipy', 'mlflow', 'ray'} & sys.modules.keys()))\n"
    )
    made = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert made.stdout.strip() == "[]"
