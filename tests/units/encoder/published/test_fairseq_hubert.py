"""Files of fairseq and scikit-learn are read exactly, and no code in them is run."""

from __future__ import annotations

import bz2
import gzip
import pickle
import zlib
from pathlib import Path

import joblib
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from reference import DATA
from tiny_parts import tones

from units.audio import load_wav
from units.encoder.hubert import HubertFeatures
from units.encoder.published.checkpoint_files import UnreadableFile, read_joblib, read_torch
from units.encoder.published.fairseq_hubert import (
    _literal,
    published_layer,
    read_centres,
    read_fairseq_checkpoint,
    read_fairseq_hubert,
)
from units.encoder.published.pickles import Inert, plain
from units.encoder.unit_encoder import UnitEncoder

LAYOUTS = ("fairseq_base", "fairseq_large")
LAYER = 3


def reference(layout: str) -> tuple[list[np.ndarray], list[list[int]], list[np.ndarray]]:
    """Wavs, fairseq's unit of every frame, fairseq's features."""
    lines = [line.split("\t") for line in (DATA / layout / "units.tsv").read_text().splitlines()]
    with np.load(DATA / layout / "features.npz") as features:
        return (
            [load_wav(DATA / "wav" / name) for name, _ in lines],
            [[int(unit) for unit in units.split()] for _, units in lines],
            [features[name] for name, _ in lines],
        )


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("batch", [1, 5, 12])
def test_units_and_features_are_fairseqs(layout: str, batch: int) -> None:
    encoder = UnitEncoder.join(DATA / layout / "hubert.pt", DATA / layout / "km.bin", LAYER)
    wavs, expected, features = reference(layout)
    assert len(wavs) == 12
    for start in range(0, len(wavs), batch):
        for i, units in enumerate(encoder.encode_batch(wavs[start : start + batch]), start):
            assert units.frames() == expected[i]
        for i, found in enumerate(encoder.features(wavs[start : start + batch]), start):
            wanted = torch.from_numpy(features[i])
            assert (found - wanted).norm() <= 1e-5 * wanted.norm()
            assert (found - wanted).abs().max() <= 1e-4 * wanted.abs().max()


@pytest.mark.parametrize("layout", LAYOUTS)
def test_fairseqs_code_gives_the_same_units(layout: str) -> None:
    pytest.importorskip("fairseq", reason="fairseq is not installed (it is an optional extra)")
    files = DATA / layout / "hubert.pt", DATA / layout / "km.bin"
    by_fairseq = UnitEncoder.join(*files, LAYER, backend="fairseq")
    here = UnitEncoder.join(*files, LAYER)
    wavs, expected, _ = reference(layout)
    assert [units.frames() for units in by_fairseq.encode_batch(wavs)] == expected
    assert by_fairseq.codebook == here.codebook


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_published_encoder_becomes_a_folder(layout: str, tmp_path: Path) -> None:
    joined = UnitEncoder.join(DATA / layout / "hubert.pt", DATA / layout / "km.bin", LAYER)
    opened = UnitEncoder.from_pretrained(joined.save_pretrained(tmp_path / "encoder"))
    assert opened.codebook == joined.codebook
    wavs, expected, _ = reference(layout)
    assert opened.encode(wavs[0]).frames() == expected[0]


def test_settings_decide_the_layout_not_shapes(tmp_path: Path) -> None:
    held = read_torch(DATA / "fairseq_base" / "hubert.pt")
    config = {name: plain(held["cfg"])[name] for name in ("model", "task")}
    config["task"]["normalize"] = True
    torch.save({"model": held["model"], "cfg": config}, tmp_path / "hubert.pt")
    model, normalise = read_fairseq_hubert(tmp_path / "hubert.pt", LAYER)
    assert normalise
    assert not model.config.do_stable_layer_norm
    assert len(model.encoder.layers) == LAYER
    config["model"]["layer_norm_first"] = True
    torch.save({"model": held["model"], "cfg": config}, tmp_path / "hubert.pt")
    assert read_fairseq_hubert(tmp_path / "hubert.pt")[0].config.do_stable_layer_norm


def with_batch_norm(path: Path, norm: torch.nn.BatchNorm1d) -> torch.nn.Conv1d:
    """Write the base checkpoint in the layout of mhubert_base_25hz, and return its positional convolution."""
    held = read_torch(DATA / "fairseq_base" / "hubert.pt")
    config = {name: plain(held["cfg"])[name] for name in ("model", "task")}
    config["model"]["conv_pos_batch_norm"] = True
    weights, layer = dict(held["model"]), "encoder.pos_conv."
    scale, direction = weights.pop(f"{layer}0.weight_g"), weights.pop(f"{layer}0.weight_v")
    width, per_group, kernel = direction.shape
    conv = torch.nn.Conv1d(width, width, kernel, padding=kernel // 2, groups=width // per_group)
    with torch.no_grad():
        conv.weight.copy_(torch._weight_norm(direction, scale, 2))
        conv.bias.copy_(weights.pop(f"{layer}0.bias"))
    weights |= {f"{layer}0.{name}": value for name, value in norm.state_dict().items()}
    weights |= {f"{layer}1.{name}": value for name, value in conv.state_dict().items()}
    torch.save({"model": weights, "cfg": config}, path)
    return conv


def width_of_base() -> int:
    return read_torch(DATA / "fairseq_base" / "hubert.pt")["model"]["encoder.pos_conv.0.bias"].numel()


def test_a_batch_norm_that_changes_nothing_gives_fairseqs_units(tmp_path: Path) -> None:
    path = tmp_path / "mhubert_base_25hz_cp_mls_cv_sp_fisher.pt"
    with_batch_norm(path, torch.nn.BatchNorm1d(width_of_base(), eps=0).eval())
    encoder = UnitEncoder.join(path, DATA / "fairseq_base" / "km.bin", LAYER)
    wavs, expected, _ = reference("fairseq_base")
    assert [units.frames() for units in encoder.encode_batch(wavs)] == expected


def test_positions_with_batch_norm_are_those_of_fairseq(tmp_path: Path) -> None:
    """fairseq's make_conv_pos: a batch norm, the convolution, SamePad and GELU (fairseq/models/wav2vec/wav2vec2.py)."""
    path, width = tmp_path / "mhubert_base_25hz_cp_mls_cv_sp_fisher.pt", width_of_base()
    norm, random = torch.nn.BatchNorm1d(width).eval(), torch.Generator().manual_seed(0)
    with torch.no_grad():
        for values in (norm.weight, norm.bias, norm.running_mean, norm.running_var):
            values.copy_(torch.rand(width, generator=random) + 0.5)
    norm.num_batches_tracked.fill_(7)
    conv = with_batch_norm(path, norm)
    model, _ = read_fairseq_hubert(path, LAYER)
    assert model.config.conv_pos_batch_norm
    assert model.encoder.pos_conv_embed.batch_norm.num_batches_tracked.equal(torch.tensor(7))
    frames = torch.randn(37, width, generator=random)
    with torch.no_grad():
        wanted = torch.nn.functional.gelu(conv(norm(frames.T[None]))[..., :-1])[0].T
    features = HubertFeatures.from_pretrained(path, LAYER)
    torch.testing.assert_close(features.positions(frames, [37]), wanted)
    features.save_pretrained(tmp_path / "folder")
    again = HubertFeatures.from_pretrained(tmp_path / "folder", LAYER)
    torch.testing.assert_close(again([tones(0.5)])[0], features([tones(0.5)])[0])


@pytest.mark.parametrize("stated", [True, False])
def test_a_positional_layout_that_the_settings_do_not_state_is_refused(tmp_path: Path, stated: bool) -> None:
    path = tmp_path / "hubert.pt"
    with_batch_norm(path, torch.nn.BatchNorm1d(width_of_base()))
    held = torch.load(path, weights_only=True)
    if stated:
        held["model"] = read_torch(DATA / "fairseq_base" / "hubert.pt")["model"]
    else:
        del held["cfg"]["model"]["conv_pos_batch_norm"]
    torch.save(held, path)
    with pytest.raises(UnreadableFile, match="pos_conv") as caught:
        read_fairseq_hubert(path, LAYER)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_old_checkpoints_have_their_settings_in_a_namespace(tmp_path: Path) -> None:
    from argparse import Namespace

    held = read_torch(DATA / "fairseq_large" / "hubert.pt")
    config = plain(held["cfg"])
    old = {"args": Namespace(**{**config["model"], **config["task"], "arch": "hubert"}), "model": held["model"]}
    torch.save(old, tmp_path / "new.pt")
    torch.save(old, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    wav = tones(0.5)
    expected = HubertFeatures.from_pretrained(DATA / "fairseq_large" / "hubert.pt", 2)([wav])[0]
    for name in ("new.pt", "old.pt"):
        found = HubertFeatures.from_pretrained(tmp_path / name, 2)
        assert found.normalise
        assert torch.equal(found([wav])[0], expected)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda held, config: held.pop("model"), "has no 'model'"),
        (lambda held, config: held["model"].pop("encoder.layers.0.fc1.bias"), "do not fit its settings"),
        (lambda held, config: held["model"].update({"layer_norm.bias": 3}), "full of tensors"),
        (lambda held, config: held.pop("cfg"), "does not state what model"),
        (lambda held, config: config["model"].update(_name="wav2vec_ctc"), "not a HuBERT"),
        (lambda held, config: config["model"].update(layer_type="conformer"), "only 'transformer'"),
        (lambda held, config: config["model"].update(pos_conv_depth=5), "pos_conv_depth 5"),
        (lambda held, config: config["model"].update(conv_feature_layers="__import__('os')"), "conv_feature_layers is"),
        (
            lambda held, config: config["model"].update(conv_feature_layers="[(1,1,1)] * 9 ** 9 ** 9"),
            "conv_feature_layers is",
        ),
    ],
)
def test_a_checkpoint_that_is_no_hubert_is_refused(tmp_path: Path, change, reason: str) -> None:
    held = read_torch(DATA / "fairseq_base" / "hubert.pt")
    config = {name: plain(held["cfg"])[name] for name in ("model", "task")}
    held = {"model": dict(held["model"]), "cfg": config}
    change(held, config)
    torch.save(held, tmp_path / "hubert.pt")
    with pytest.raises(UnreadableFile, match=reason) as caught:
        read_fairseq_hubert(tmp_path / "hubert.pt", LAYER)
    assert str(tmp_path / "hubert.pt") in str(caught.value)


def test_a_layer_beyond_the_checkpoint_s_is_refused() -> None:
    with pytest.raises(ValueError, match="layers 1 to 4"):
        read_fairseq_hubert(DATA / "fairseq_base" / "hubert.pt", 5)


def test_expressions_are_read_without_eval() -> None:
    text = "[(512,10,5)] + [(512,3,2)] * 4 + [(512,2,2)] * 2"
    assert _literal(text) == [(512, 10, 5), *4 * [(512, 3, 2)], *2 * [(512, 2, 2)]]
    for bad in ("[1] * [2]", "2 * 3", "[1] * 1000", "open('x')", "[x for x in y]", "1 +"):
        with pytest.raises((ValueError, SyntaxError, TypeError)):
            _literal(bad)


def test_the_layers_of_published_pairs_are_known() -> None:
    assert published_layer("models/hubert_base_ls960.pt", 500) == 9
    assert published_layer("facebook/hubert-base-ls960", 100) == 6
    assert published_layer("mhubert_base_vp_en_es_fr_it3.pt", 1000) == 11
    assert published_layer("slprl/mhubert-base-25hz", 500) == 11
    assert published_layer("hubert_base_ls960.pt", 1000) is None
    assert published_layer("mine.pt", 500) is None


# --- k-means files


@pytest.mark.parametrize("compress", [None, ("zlib", 3), ("gzip", 3), ("bz2", 3), ("xz", 3)])
@pytest.mark.parametrize("kind", ["KMeans", "MiniBatchKMeans"])
def test_a_fitted_kmeans_is_read(tmp_path: Path, kind: str, compress: tuple[str, int] | None) -> None:
    from sklearn import cluster

    points = np.random.default_rng(0).normal(size=(200, 7)).astype(np.float32)
    fitted = getattr(cluster, kind)(5, n_init=1, random_state=np.random.RandomState(0)).fit(points)
    joblib.dump(fitted, tmp_path / "km.bin", compress=compress or 0)
    centres = read_centres(tmp_path / "km.bin")
    assert centres.dtype == torch.float32
    np.testing.assert_array_equal(centres.numpy(), fitted.cluster_centers_.astype(np.float32))


def test_centres_are_read_from_arrays_too(tmp_path: Path) -> None:
    from safetensors.numpy import save_file

    centres = np.random.default_rng(0).normal(size=(6, 4))
    np.save(tmp_path / "a.npy", np.asfortranarray(centres))
    save_file({"km": centres}, tmp_path / "b.safetensors")
    joblib.dump(np.asfortranarray(centres), tmp_path / "c.bin")
    for name in ("a.npy", "b.safetensors", "c.bin"):
        np.testing.assert_array_equal(read_centres(tmp_path / name).numpy(), centres.astype(np.float32))


@pytest.mark.parametrize(
    ("name", "write", "reason"),
    [
        ("a.npy", lambda path: np.save(path, np.array([{}], object), allow_pickle=True), "cannot be read as an array"),
        ("b.npy", lambda path: np.save(path, np.zeros(5)), "holds"),
        ("c.npy", lambda path: np.save(path, np.full((2, 2), np.nan)), "NaN"),
        ("d.npy", lambda path: path.write_bytes(b"text"), "cannot be read as an array"),
        ("e.safetensors", lambda path: path.write_bytes(b"x" * 99), "cannot be read as safetensors"),
        ("f.bin", lambda path: path.write_bytes(b""), "cannot be read as a joblib file"),
        ("g.bin", lambda path: joblib.dump({"a": 1}, path), "holds dict"),
        ("h.bin", lambda path: joblib.dump(np.array([{}, []], object), path), "python objects"),
        ("i.bin", lambda path: joblib.dump(np.zeros((2, 2), np.int64), path), "array of floats"),
        ("j.bin", lambda path: path.write_bytes(b"\x78\x9cbroken"), "cannot be read as a joblib file"),
    ],
)
def test_a_file_that_is_no_kmeans_is_refused_with_its_reason(tmp_path: Path, name: str, write, reason: str) -> None:
    write(tmp_path / name)
    with pytest.raises(UnreadableFile, match=reason) as caught:
        read_centres(tmp_path / name)
    assert name in str(caught.value)


# --- hostile files


class Hostile:
    """Creates a file when it is unpickled."""

    def __init__(self, path: Path, call: str = "open") -> None:
        self.path, self.call = path, call

    def __reduce__(self) -> tuple:
        import os

        calls = {
            "open": (open, (str(self.path), "w")),
            "system": (os.system, (f"touch {self.path}",)),
            "eval": (eval, (f"open({str(self.path)!r}, 'w')",)),
            "getattr": (getattr, (Path(self.path), "touch")),
        }
        return calls[self.call]


@pytest.mark.parametrize("call", ["open", "system", "eval", "getattr"])
@pytest.mark.parametrize("place", ["torch", "torch_old", "joblib", "pickle"])
def test_a_hostile_file_runs_nothing(tmp_path: Path, call: str, place: str) -> None:
    mark, path = tmp_path / "mark", tmp_path / "file"
    hostile = {"model": {"w": torch.ones(2)}, "cfg": Hostile(mark, call)}
    if place.startswith("torch"):
        torch.save(hostile, path, _use_new_zipfile_serialization=place == "torch")
        assert isinstance(read_torch(path)["cfg"], Inert)
        assert torch.equal(read_torch(path)["model"]["w"], torch.ones(2))
        with pytest.raises(UnreadableFile):
            read_fairseq_checkpoint(path)
    else:
        (joblib.dump if place == "joblib" else lambda what, to: to.write_bytes(pickle.dumps(what)))(
            {"cluster_centers_": Hostile(mark, call)}, path
        )
        assert isinstance(read_joblib(path)["cluster_centers_"], Inert)
        with pytest.raises(UnreadableFile):
            read_centres(path)
    assert not mark.exists()


def test_the_state_of_an_allowed_name_cannot_be_set(tmp_path: Path) -> None:
    """The opcode BUILD would otherwise set attributes of classes and functions of ours."""
    for target in ("collections\nOrderedDict", "joblib.numpy_pickle\nNumpyArrayWrapper", "_codecs\nencode"):
        (tmp_path / "x.bin").write_bytes(f"c{target}\n(N(S'shape'\nI1\ndtb.".encode())
        with pytest.raises(UnreadableFile, match="sets the state"):
            read_joblib(tmp_path / "x.bin")


def test_a_torchscript_program_is_refused(tmp_path: Path) -> None:
    torch.jit.script(torch.nn.Linear(2, 2)).save(str(tmp_path / "program.pt"))
    with pytest.raises(UnreadableFile, match="TorchScript"):
        read_torch(tmp_path / "program.pt")


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """A whole file of each kind."""
    folder = tmp_path_factory.mktemp("written")
    from sklearn.cluster import KMeans

    joblib.dump(KMeans(3, n_init=1).fit(np.random.default_rng(0).normal(size=(30, 4))), folder / "joblib")
    torch.save({"model": {"a": torch.ones(3), "b": Inert()}, "cfg": {}}, folder / "torch")
    torch.save({"model": {"a": torch.ones(3)}}, folder / "torch_old", _use_new_zipfile_serialization=False)
    files = {path.name: path.read_bytes() for path in folder.iterdir()}
    return files | {
        name: pack(files["joblib"])
        for name, pack in (("gz", gzip.compress), ("zlib", zlib.compress), ("bz2", bz2.compress))
    }


@pytest.mark.parametrize("kind", ["joblib", "torch", "torch_old", "gz", "zlib", "bz2"])
@settings(max_examples=60, deadline=None)
@given(cut=st.floats(0, 1), damage=st.lists(st.tuples(st.floats(0, 0.999), st.integers(0, 255)), max_size=4))
def test_a_damaged_file_is_an_error_that_names_it(written, tmp_path_factory, kind: str, cut: float, damage) -> None:
    data = bytearray(written[kind])
    for where, byte in damage:
        data[int(where * len(data))] = byte
    path = tmp_path_factory.getbasetemp() / f"damaged-{kind}"
    path.write_bytes(bytes(data[: int(cut * len(data))] if cut < 0.9 else data))
    try:
        (read_torch if kind.startswith("torch") else read_centres)(path)  # damage may be where nothing is read
    except UnreadableFile as error:
        assert str(path) in str(error)
