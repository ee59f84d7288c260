"""Models that others made: registered by looking at them, scored as they score themselves."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import numpy as np
import onnx
import pytest
from click.testing import CliRunner
from onnx import TensorProto, helper

from jobs.cli.main import cli
from models.errors import ManifestError, ModelError, ModelNotFoundError
from models.explain import explainer_of
from models.external import describe_external
from models.mlflow_source import fetch_mlflow
from models.registry import Registry
from models.session import open_model
from models.written import written_model


def _described(data: bytes, **options: object):
    return describe_external(data, name="other", created_at_ms=1, **options)


def _classifier(zipmap: bool) -> bytes:
    nodes = [
        helper.make_node(
            "LinearClassifier",
            ["input"],
            ["label", "probabilities"],
            domain="ai.onnx.ml",
            classlabels_ints=[0, 1],
            coefficients=[-1.0, -2.0, 1.0, 2.0],
            intercepts=[0.5, -0.5],
            multi_class=0,
            post_transform="SOFTMAX",
        )
    ]
    probabilities = helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, ["n", 2])
    if zipmap:
        nodes.append(
            helper.make_node(
                "ZipMap",
                ["probabilities"],
                ["maps"],
                domain="ai.onnx.ml",
                classlabels_int64s=[0, 1],
            )
        )
        entry = helper.make_map_type_proto(
            TensorProto.INT64, helper.make_tensor_type_proto(TensorProto.FLOAT, [])
        )
        probabilities = helper.make_value_info("maps", helper.make_sequence_type_proto(entry))
    graph = helper.make_graph(
        nodes,
        "one",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, ["n", 2])],
        [helper.make_tensor_value_info("label", TensorProto.INT64, ["n"]), probabilities],
    )
    model = helper.make_model(
        graph,
        opset_imports=[helper.make_opsetid("", 17), helper.make_opsetid("ai.onnx.ml", 1)],
        ir_version=8,
    )
    data: bytes = model.SerializeToString()
    return data


@pytest.mark.parametrize(
    ("name", "class_index"),
    [("rhoai_fraud", None), ("treecl2", 0), ("treecl2", 1), *[("treecl", one) for one in range(3)]],
)
def test_published_models_score_as_published(
    shared_data: Callable[[str], Path], name: str, class_index: int | None
) -> None:
    folder = shared_data("onnx_models")
    known = json.loads((folder / "expected.json").read_text())[name]
    made = _described((folder / f"{name}.onnx").read_bytes(), class_index=class_index)
    model = open_model(made.manifest, made.model, made.manifest.features)
    scores = model.score(np.array(known["input"], np.float64))
    if "output" in known:
        expected = np.array(known["output"])
    else:
        expected = np.array(known["proba"])[:, class_index]
    np.testing.assert_allclose(scores, expected, atol=1e-6)


@pytest.mark.parametrize(("name", "class_index"), [("treecl2", 0), ("treecl2", 1), ("treecl", 2)])
def test_trees_that_others_trained_are_explained_exactly(
    shared_data: Callable[[str], Path], name: str, class_index: int
) -> None:
    data = (shared_data("onnx_models") / f"{name}.onnx").read_bytes()
    made = _described(data, class_index=class_index)
    model = open_model(made.manifest, made.model, made.manifest.features)
    explainer = explainer_of(made.manifest, made.model, model.score_rows)
    assert explainer.method == "tree"
    assert explainer.scale == ("log_odds" if name == "treecl2" else "margin")
    if name == "treecl2":
        rows = made.manifest.golden.input_matrix()
        explained = explainer.explain(rows)
        raw = explained.contributions.sum(axis=1) + explained.base
        np.testing.assert_allclose(1 / (1 + np.exp(-raw)), model.score_rows(rows), atol=1e-6)


def test_maps_become_a_tensor_and_keep_their_values() -> None:
    plain, mapped = _described(_classifier(False)), _described(_classifier(True))
    assert mapped.manifest.output.form == "matrix"
    assert mapped.manifest.output.class_index == 1
    assert mapped.manifest.golden.outputs == plain.manifest.golden.outputs
    assert mapped.manifest.source_sha256 != mapped.manifest.sha256
    operators = [node.op_type for node in onnx.load_from_string(mapped.model).graph.node]
    assert "ZipMap" not in operators


def test_a_network_is_explained_by_sampling_with_its_error(
    shared_data: Callable[[str], Path],
) -> None:
    data = (shared_data("onnx_models") / "rhoai_fraud.onnx").read_bytes()
    made = _described(data)
    model = open_model(made.manifest, made.model, made.manifest.features)
    explainer = model.explainer()
    rows = made.manifest.golden.input_matrix()[:4]
    explained = explainer.explain(rows)
    assert explainer.method == "sampled"
    assert (explained.error > 0).any()
    total = explained.contributions.sum(axis=1) + explained.base
    np.testing.assert_allclose(total, model.score_rows(rows), atol=1e-5)


def test_several_classes_need_a_choice(shared_data: Callable[[str], Path]) -> None:
    data = (shared_data("onnx_models") / "treecl.onnx").read_bytes()
    with pytest.raises(ManifestError, match="has 3 classes; choose one"):
        _described(data)


def test_names_must_fit_the_width() -> None:
    with pytest.raises(ManifestError, match="takes 2 features, was given 3 names"):
        _described(_classifier(False), features=["a", "b", "c"])


def test_bytes_that_are_no_model_are_refused() -> None:
    with pytest.raises(ManifestError, match="not an ONNX file"):
        _described(b"PK\x03\x04 not a model")


class _MlflowHandler(BaseHTTPRequestHandler):
    model = b""

    def log_message(self, *_: object) -> None:
        return

    def _answer(self, status: int, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        versions = [{"version": "1"}, {"version": "2"}] if body["name"] == "fraud" else []
        if body.get("stages") == ["Production"]:
            versions = versions[:1]
        self._answer(200, json.dumps({"model_versions": versions}).encode())

    def do_GET(self) -> None:
        parts = urlsplit(self.path)
        query = {key: value[0] for key, value in parse_qs(parts.query).items()}
        if parts.path.endswith("/get-download-uri"):
            uri = f"mlflow-artifacts:/1/run{query['version']}/artifacts/model"
            self._answer(200, json.dumps({"artifact_uri": uri}).encode())
        elif parts.path.endswith("/registered-models/alias"):
            if query["alias"] == "champion":
                self._answer(200, json.dumps({"model_version": {"version": "1"}}).encode())
            else:
                self._answer(404, b"{}")
        elif parts.path == "/api/2.0/mlflow-artifacts/artifacts/1/run2/artifacts/model/model.onnx":
            self._answer(200, self.model)
        elif parts.path == "/api/2.0/mlflow-artifacts/artifacts/1/run1/artifacts/model/model.onnx":
            self._answer(200, b"first")
        else:
            self._answer(404, b"{}")


@pytest.fixture
def mlflow_server() -> Iterator[str]:
    _MlflowHandler.model = _classifier(False)
    server = HTTPServer(("127.0.0.1", 0), _MlflowHandler)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


def test_the_newest_version_comes_from_an_mlflow_server(mlflow_server: str, tmp_path: Path) -> None:
    fetched = fetch_mlflow("mlflow:fraud", mlflow_server)
    assert fetched.origin == "mlflow:fraud/2"
    version = Registry(str(tmp_path)).register(_described(fetched.data))
    assert version.startswith("other@")


@pytest.mark.parametrize("reference", ["mlflow:fraud@champion", "mlflow:fraud/Production"])
def test_aliases_and_stages_name_a_version(mlflow_server: str, reference: str) -> None:
    assert fetch_mlflow(reference, mlflow_server).data == b"first"


@pytest.mark.parametrize("reference", ["mlflow:fraud@nobody", "mlflow:nothing"])
def test_what_mlflow_does_not_have_is_not_found(mlflow_server: str, reference: str) -> None:
    with pytest.raises(ModelNotFoundError):
        fetch_mlflow(reference, mlflow_server)


def test_a_local_mlflow_store_is_read_without_a_server(tmp_path: Path) -> None:
    artifacts = tmp_path / "1" / "run" / "artifacts" / "model"
    artifacts.mkdir(parents=True)
    (artifacts / "model.onnx").write_bytes(b"model")
    version = tmp_path / "models" / "fraud" / "version-3"
    version.mkdir(parents=True)
    meta = f"version: 3\ncurrent_stage: Production\nsource: {artifacts}\n"
    (version / "meta.yaml").write_text(meta)
    assert fetch_mlflow("mlflow:fraud/Production", str(tmp_path)).data == b"model"
    assert fetch_mlflow("mlflow:fraud", f"file:{tmp_path}").origin == "mlflow:fraud/3"


def _written(name: str, known: dict, **more: object) -> dict:
    outputs = known.get("output") or [row[1] for row in known["proba"]]
    return {
        "name": name.replace("_", "-"),
        "golden": {"inputs": known["input"], "outputs": outputs},
        **({} if "output" in known else {"output": {"class_index": 1}}),
        **more,
    }


@pytest.mark.parametrize("name", ["rhoai_fraud", "treecl", "treecl2"])
def test_a_model_is_registered_by_the_manifest_that_somebody_wrote(
    shared_data: Callable[[str], Path], tmp_path: Path, name: str
) -> None:
    folder = shared_data("onnx_models")
    known = json.loads((folder / "expected.json").read_text())[name]
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    (theirs / "model.onnx").write_bytes((folder / f"{name}.onnx").read_bytes())
    written = _written(name, known, description="From next door.", licence="Apache-2.0")
    (theirs / "manifest.json").write_text(json.dumps(written))
    result = CliRunner().invoke(
        cli,
        [f"--set=models.registry={tmp_path}/models", "models", "register", str(theirs), "--json"],
    )
    assert result.exit_code == 0, result.output
    registry = Registry(str(tmp_path / "models"))
    manifest, data = registry.load(json.loads(result.output)["version"])
    assert manifest.description == "From next door."
    assert list(manifest.golden.outputs) == written["golden"]["outputs"]
    model = open_model(manifest, data, manifest.features)
    scores = model.score(manifest.golden.input_matrix())
    np.testing.assert_allclose(scores, written["golden"]["outputs"], atol=1e-6)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"golden": {"inputs": [[0.0] * 5], "outputs": [0.9]}}, "golden row 0 gave"),
        ({"golden": {"inputs": [[0.0] * 5, [1.0]], "outputs": [0.9, 0.1]}}, "rows of numbers"),
        ({"sha256": "0" * 64}, "of a file with SHA-256 '0000"),
        ({"features": ["a", "b"]}, "takes 5 features, was given 2"),
        ({"input": {"name": "rows"}}, "expected one input 'rows'"),
        ({"output": {"name": "label"}}, "expected one float output"),
        ({"colour": "red"}, "colour"),
        ({"name": ""}, "at least a name"),
        ({"name": "Not Plain"}, "lower-case letters"),
    ],
)
def test_a_written_manifest_that_is_not_true_is_refused(
    shared_data: Callable[[str], Path], change: dict, message: str
) -> None:
    folder = shared_data("onnx_models")
    known = json.loads((folder / "expected.json").read_text())["rhoai_fraud"]
    data = (folder / "rhoai_fraud.onnx").read_bytes()
    written = _written("rhoai_fraud", known) | change
    with pytest.raises(ModelError, match=message):
        written_model(data, json.dumps(written), created_at_ms=1)


def test_a_manifest_that_is_no_json_is_refused() -> None:
    with pytest.raises(ManifestError, match="reading a model manifest"):
        written_model(b"", "name: other", created_at_ms=1)
