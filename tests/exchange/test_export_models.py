"""Exported models against Keras: physical features in, the same scores out."""

import keras
import numpy as np
import onnxruntime
import pytest

from hepdask import export, models
from hepdask.config import Config
from hepdask.config.feature_names import HIGH_LEVEL, PARTICLE
from hepdask.errors import ConfigError, HepdaskError, InputError
from hepdask.exchange import model_files
from hepdask.models.record import ModelRecord, file_digest, write_model

CASES = {
    "hlf": {},
    "sequence": {"cell": "gru"},
    "sequence-lstm": {"cell": "lstm", "particle_features": ["Pt", "Eta", "isMu"]},
    "inclusive": {"cell": "gru", "features": ["MET", "HT"]},
    "inclusive-lstm": {"cell": "lstm"},
    "inclusive-transformer": {"cell": "transformer"},
}


def save(folder, case):
    """Save a network with random weights and scaling as training does."""
    name = case.partition("-")[0]
    config = Config.model_validate({"models": {name: CASES[case]}})
    inputs = models.inputs(name, config.models, HIGH_LEVEL)
    keras.utils.set_random_seed(3)
    model = models.build(name, config.models, inputs, 3)
    rng = np.random.default_rng(3)
    model.set_weights([rng.normal(0, 0.3, weight.shape) for weight in model.get_weights()])

    def scaling(width):
        factor = rng.uniform(0.1, 3, width)
        factor[0] = 0  # a constant feature
        return {"shift": rng.normal(0, 5, width).tolist(), "factor": factor.tolist()}

    folder.mkdir()
    model.save(folder / "saved.keras")
    content = (folder / "saved.keras").read_bytes()
    document = {
        "key": "0", "model": name, "file": "model.keras", "file_digest": file_digest(content),
        "classes": ["qcd", "ttbar", "wjets"], "inputs": inputs, "settings": CASES[case], "study": None,
        "analysis": config.analysis.model_dump(mode="json"), "code": [], "imported": False, "mantissa_bits": 23,
        "scaling": {"high_level": scaling(len(HIGH_LEVEL)), "particles": scaling(len(PARTICLE))},
        "history": [], "importances": {}, "facts": {},
    }  # fmt: skip
    write_model(folder, ModelRecord.model_validate(document), content)
    return model, document


@pytest.mark.parametrize("case", [case for case in CASES if "transformer" not in case])
def test_onnx_gives_the_scores_of_keras(tmp_path, case):
    model, record = save(tmp_path / "model", case)
    done = export(tmp_path / "model", "onnx", tmp_path / "model.onnx")
    assert done.max_difference < 1e-5
    rng = np.random.default_rng(5)
    lengths = np.array([1, 7, 25, 12], np.int32)
    given, expected = {}, {}
    for kind, shape in (("high_level", (4, len(HIGH_LEVEL))), ("particles", (4, 25, len(PARTICLE)))):
        if kind not in record["inputs"]:
            continue
        values = rng.normal(0, 5, shape).astype(np.float32)
        shift, factor = (np.float32(record["scaling"][kind][key]) for key in ("shift", "factor"))
        given[kind], expected[kind] = values, ((values - shift) * factor)[..., record["inputs"][kind]]
    if "particles" in given:
        given["lengths"] = lengths
        expected["particles"][np.arange(25) >= lengths[:, None]] = 0
    scores = onnxruntime.InferenceSession(done.path).run(["scores"], given)[0]
    assert scores == pytest.approx(np.asarray(model(expected)), abs=1e-5)
    assert np.ptp(scores, axis=0).max() > 0.01


def test_a_transformer_goes_as_saved_model(tmp_path):
    save(tmp_path / "model", "inclusive-transformer")
    with pytest.raises(ConfigError, match=r"cannot be written as ONNX; use --format savedmodel"):
        export(tmp_path / "model", "onnx", tmp_path / "model.onnx")
    assert not (tmp_path / "model.onnx").exists()
    done = export(tmp_path / "model", "savedmodel", tmp_path / "saved")
    assert done.max_difference < 1e-5
    assert (tmp_path / "saved" / "saved_model.pb").exists()
    with pytest.raises(ConfigError, match="exists already"):
        export(tmp_path / "model", "savedmodel", tmp_path / "saved")


def test_other_scores_are_an_error(tmp_path, monkeypatch):
    save(tmp_path / "model", "hlf")
    monkeypatch.setattr(model_files, "_TOLERANCE", -1.0)
    with pytest.raises(HepdaskError, match="differ from those of Keras"):
        export(tmp_path / "model", "onnx", tmp_path / "model.onnx")
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_what_is_no_model_is_refused(tmp_path):
    with pytest.raises(InputError, match="not the folder of a trained model"):
        export(tmp_path, "onnx", tmp_path / "model.onnx")
    with pytest.raises(ValueError, match="a model has no events"):
        export(tmp_path, "onnx", tmp_path / "model.onnx", "test")
