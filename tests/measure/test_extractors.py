"""Extractors on local weights: shape, preprocessing, batch size, what is refused, and the cache of features."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from diffusion_inversion.errors import DataError, DinvError, UsageError
from diffusion_inversion.measure.extractors.cache import cached_features
from diffusion_inversion.measure.extractors.catalog import open_extractor
from diffusion_inversion.measure.extractors.extractor import Extractor, Preprocessing, extract
from diffusion_inversion.measure.extractors.inception import open_inception

CPU = torch.device("cpu")


def pictures(n: int, size: int = 16, seed: int = 0) -> Tensor:
    return torch.randint(0, 256, (n, 3, size, size), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)


def save_dinov2(folder: Path) -> Path:
    from transformers import Dinov2Config, Dinov2Model

    torch.manual_seed(0)
    config = Dinov2Config(hidden_size=24, num_hidden_layers=1, num_attention_heads=2, image_size=56, patch_size=28)
    Dinov2Model(config).save_pretrained(folder)
    return folder


def save_clip(folder: Path) -> Path:
    from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

    torch.manual_seed(0)
    config = CLIPVisionConfig(
        hidden_size=24, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2, image_size=32, patch_size=16,
        projection_dim=20,
    )  # fmt: skip
    CLIPVisionModelWithProjection(config).save_pretrained(folder)
    return folder


def save_timm(path: Path) -> Path:
    import timm

    torch.manual_seed(0)
    save_file(timm.create_model("mobilenetv3_small_050").state_dict(), path)
    return path


@pytest.fixture(scope="module")
def inception_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random weights in the layout of the FID network."""
    network = pytest.importorskip("torch_fidelity.feature_extractor_inceptionv3").FeatureExtractorInceptionV3

    class Untrained(network):  # type: ignore[misc, valid-type]
        def load_state_dict(self, *ignored: object) -> None:
            """Keep what the layers were made with."""

    path = tmp_path_factory.mktemp("inception") / "inception.pth"
    torch.save({}, path)
    torch.manual_seed(0)
    state = Untrained("inception", ["2048"], feature_extractor_weights_path=str(path)).state_dict()
    torch.save(state, path)
    return path


@pytest.fixture(scope="module", params=["lite0", "inception", "dinov2", "clip", "timm:mobilenetv3_small_050"])
def extractor(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Extractor:
    folder, name = tmp_path_factory.mktemp("weights"), str(request.param)
    if name == "inception":
        return open_inception(CPU, request.getfixturevalue("inception_file"), sha256_start="")
    savers = {"dinov2": save_dinov2, "clip": save_clip}
    if name == "lite0":
        return open_extractor(name, CPU)
    return open_extractor(name, CPU, savers[name](folder) if name in savers else save_timm(folder / "a.safetensors"))


def test_features_have_the_stated_size_and_do_not_depend_on_the_batch(extractor: Extractor) -> None:
    images = pictures(3)
    whole = extract(extractor, images, batch_size=3)
    assert whole.shape == (3, extractor.dim)
    assert whole.dtype == torch.float32
    largest = float(whole.abs().max())
    torch.testing.assert_close(extract(extractor, images, batch_size=1), whole, rtol=0, atol=1e-4 * largest)
    torch.testing.assert_close(
        extract(extractor, images.flip(0), batch_size=2).flip(0), whole, rtol=0, atol=1e-4 * largest
    )
    assert float((whole[0] - whole[1]).abs().max()) > 1e-2 * largest  # it does see the images


def test_names_of_metrics_say_the_features(extractor: Extractor) -> None:
    assert extractor.suffix == {"inception": ""}.get(extractor.name, f"_{extractor.name.removeprefix('timm:')}")
    assert len(extractor.weights_sha256) == 64
    assert "px" in extractor.preprocessing


def test_lite0_is_the_last_part_of_the_profile() -> None:
    """In bfloat16 there on some machines, so to 6 % on noise."""
    from diffusion_inversion.data.images import to_model_range
    from diffusion_inversion.generator.features import load_lite0, profile

    images = pictures(4, 32)
    ours = extract(open_extractor("lite0", CPU), images)
    theirs = profile(load_lite0(), to_model_range(images))[:, -1280:]
    assert float((ours - theirs).norm()) < 0.06 * float(theirs.norm())


def test_dinov2_is_the_class_token_and_clip_the_projection(tmp_path: Path) -> None:
    from transformers import CLIPVisionModelWithProjection, Dinov2Model

    images = pictures(2)
    dinov2, clip = (open_extractor(n, CPU, s(tmp_path / n)) for n, s in (("dinov2", save_dinov2), ("clip", save_clip)))
    model = Dinov2Model.from_pretrained(tmp_path / "dinov2").eval()
    prepared = Preprocessing(224, "bicubic", (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))(images)
    with torch.no_grad():
        token = model(pixel_values=prepared).last_hidden_state[:, 0]
    torch.testing.assert_close(extract(dinov2, images), token, rtol=1e-4, atol=1e-4)
    assert clip.dim == CLIPVisionModelWithProjection.from_pretrained(tmp_path / "clip").config.projection_dim == 20


def test_preprocessing_is_resize_then_normalise() -> None:
    flat = torch.tensor([0, 51, 255], dtype=torch.uint8).view(1, 3, 1, 1).expand(1, 3, 8, 8)
    found = Preprocessing(12, "bicubic", (0.5, 0.2, 0.0), (0.5, 0.1, 0.25))(flat)
    assert found.shape == (1, 3, 12, 12)
    torch.testing.assert_close(found[0, :, 5, 5], torch.tensor([-1.0, 0.0, 4.0]))
    edge = torch.zeros(1, 3, 8, 8, dtype=torch.uint8)
    edge[..., 4:] = 255
    overshoot = Preprocessing(32, "bicubic", (0.0,) * 3, (1.0,) * 3)(edge)
    assert 0 <= float(overshoot.min()) <= float(overshoot.max()) <= 1


def test_a_classifier_in_the_file_is_left_out_and_other_tensors_are_not(tmp_path: Path) -> None:
    path = save_timm(tmp_path / "a.safetensors")
    state = load_file(path)
    assert any(name.startswith("classifier.") for name in state)
    name = "timm:mobilenetv3_small_050"
    open_extractor(name, CPU, path)
    torch.save(state, tmp_path / "a.pth")
    with pytest.raises(UsageError, match=r"not a state dict .* as \.safetensors"):  # a pickle is never loaded
        open_extractor(name, CPU, tmp_path / "a.pth")
    state["blocks.9.new"] = torch.zeros(1)
    save_file(state, tmp_path / "b.safetensors")
    with pytest.raises(UsageError, match=r"1 unknown \(blocks.9.new"):
        open_extractor(name, CPU, tmp_path / "b.safetensors")
    del state["blocks.9.new"], state["conv_stem.weight"]
    save_file(state, tmp_path / "c.safetensors")
    with pytest.raises(UsageError, match=r"1 tensors missing.*conv_stem.weight"):
        open_extractor(name, CPU, tmp_path / "c.safetensors")


def test_other_weights_are_not_called_inception(inception_file: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"SHA-256 .* 6726825d"):
        open_extractor("inception", CPU, inception_file)
    (tmp_path / "torn.pth").write_bytes(inception_file.read_bytes()[:5000])
    with pytest.raises(UsageError, match="not the weights of the FID network"):
        open_inception(CPU, tmp_path / "torn.pth", sha256_start="")


@pytest.mark.parametrize(
    ("name", "weights", "message"),
    [
        ("lite1", None, "lite0, inception, dinov2, clip, timm:<model>"),
        ("lite0", "a.pth", "leave --weights out"),
        ("inception", "none.pth", "no such file"),
        ("timm:resnet18", "none.safetensors", "no such file"),
        ("timm:resnet_18", None, "timm has no such model; it has"),
        ("dinov2", "./none", "no such folder"),
    ],
)
def test_a_wrong_argument_is_named(name: str, weights: str | None, message: str) -> None:
    with pytest.raises(UsageError) as error:
        open_extractor(name, CPU, weights)
    assert message in str(error.value)


def test_a_pickle_is_not_loaded(tmp_path: Path) -> None:
    folder = save_dinov2(tmp_path)
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    with pytest.raises(UsageError, match=r"model\.safetensors as --weights \(pickles are never loaded\)"):
        open_extractor("dinov2", CPU, folder)


def test_another_model_in_the_folder_is_refused(tmp_path: Path) -> None:
    folder = save_dinov2(tmp_path)
    state = load_file(folder / "model.safetensors")
    del state["layernorm.weight"]
    save_file(state, folder / "model.safetensors")
    with pytest.raises(UsageError, match=r"1 tensors are missing \(layernorm.weight"):
        open_extractor("dinov2", CPU, folder)


@pytest.mark.parametrize("name", ["inception", "dinov2", "clip", "timm:resnet18"])
def test_without_a_network_the_remedy_is_named(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_network(*ignored: object, **also: object) -> None:
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", no_network)
    monkeypatch.setenv("DINV_DATA", str(tmp_path))
    from huggingface_hub import constants

    for variable in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"):
        if hasattr(constants, variable):
            monkeypatch.setattr(constants, variable, str(tmp_path))
    with pytest.raises(UsageError, match=r"--weights.*--extractor lite0"):
        open_extractor(name, CPU)
    assert list(tmp_path.rglob("*.pth")) == []


def counting(embed_sizes: list[int], name: str = "toy", weights: str = "0" * 64) -> Extractor:
    """Channel means; notes the size of every batch that it sees."""

    def embed(images: Tensor) -> Tensor:
        embed_sizes.append(len(images))
        return images.float().mean(dim=(2, 3))

    return Extractor(name, f"_{name}", 3, "8 px", weights, CPU, embed)


def test_features_come_from_the_cache_for_the_same_pixels_and_weights_only(tmp_path: Path) -> None:
    seen: list[int] = []
    images = pictures(5)
    first = cached_features(counting(seen), images, tmp_path, batch_size=2)
    assert seen == [2, 2, 1]
    assert torch.equal(cached_features(counting(seen), images.clone(), tmp_path, batch_size=5), first)
    assert len(seen) == 3
    changed = images.clone()
    changed[4, 2, 7, 7] += 1
    cached_features(counting(seen), changed, tmp_path)
    cached_features(counting(seen), images.flip(0), tmp_path)
    cached_features(counting(seen, weights="1" * 64), images, tmp_path)
    cached_features(counting(seen, name="other"), images, tmp_path)
    assert len(seen) == 7
    cached_features(counting(seen), images, None)
    assert len(seen) == 8
    assert len(list(tmp_path.iterdir())) == 5


@pytest.mark.parametrize("damage", ["torn", "changed", "empty"])
def test_a_damaged_cache_file_is_computed_again(tmp_path: Path, damage: str) -> None:
    seen: list[int] = []
    first = cached_features(counting(seen), pictures(5), tmp_path)
    (path,) = tmp_path.iterdir()
    content = bytearray(path.read_bytes())
    if damage == "changed":
        content[-1] ^= 1
    path.write_bytes({"torn": content[:-4], "changed": content, "empty": b""}[damage])
    assert torch.equal(cached_features(counting(seen), pictures(5), tmp_path), first)
    assert len(seen) == 2
    cached_features(counting(seen), pictures(5), tmp_path)
    assert len(seen) == 2


def test_features_that_are_not_finite_are_an_error_and_not_kept(tmp_path: Path) -> None:
    broken = Extractor("toy", "_toy", 3, "8 px", "0" * 64, CPU, lambda images: images.float().mean(dim=(2, 3)) / 0)
    with pytest.raises(DataError, match="5 of 5 images") as error:
        cached_features(broken, pictures(5), tmp_path)
    assert isinstance(error.value, DinvError)
    assert list(tmp_path.iterdir()) == []
