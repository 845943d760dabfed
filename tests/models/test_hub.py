"""Repositories of the Hugging Face hub, by its real client: its cache, and a server on this machine."""

import hashlib
import http.server
import json
import re
import shutil
import sys
import threading
import urllib.parse
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from model_files import (
    SCHEDULER,
    TORCH_WEIGHTS,
    WEIGHTS,
    assert_same_parameters,
    edit_json,
    edit_weights,
    flatten,
    sentence_of,
    shard,
)

import repaint_jax as rp
from repaint_jax.models import load_autoencoder, load_unet2d
from repaint_jax.models.pretrained import load_pretrained


def test_missing_hub_client_is_asked_for(monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    sentence = sentence_of(lambda: load_pretrained("owner/tiny"))
    assert sentence.startswith("owner/tiny is not a folder here; to look for it on the Hugging Face hub ")
    assert "repaint_jax[hub]" in sentence


COMMITS = {"main": "1" * 40, "dev": "2" * 40}


@pytest.fixture
def hub(tmp_path: Path, set_hub_constants) -> Path:
    """The empty cache of the hub's client, which is offline."""
    set_hub_constants(HF_HUB_CACHE=str(tmp_path / "hub"), HF_HUB_OFFLINE=True)
    return tmp_path / "hub"


def test_cached_repository_loads_offline_at_each_revision(hub: Path, folder, unet):
    repository = hub / "models--owner--tiny"
    (repository / "refs").mkdir(parents=True)
    for branch, commit in COMMITS.items():
        (repository / "refs" / branch).write_text(commit)
    shutil.copytree(folder, repository / "snapshots" / COMMITS["main"])
    edit_weights(folder / "unet" / WEIGHTS, conv_in__bias=np.full(4, 7, np.float32))
    edit_json(folder / SCHEDULER, num_train_timesteps=500)
    flatten(folder)
    shutil.copytree(folder, repository / "snapshots" / COMMITS["dev"])

    assert_same_parameters(load_pretrained("owner/tiny")[0], unet, rtol=0)
    assert_same_parameters(load_unet2d("owner/tiny", "unet"), unet, rtol=0)
    assert rp.RePaintSchedulerConfig.from_pretrained("owner/tiny", "scheduler").num_train_timesteps == 1000
    for revision in ("dev", COMMITS["dev"]):
        module, config, _ = load_pretrained("owner/tiny", revision=revision)
        assert (module.conv_in.bias[0], config.num_train_timesteps) == (7, 500)
        assert load_unet2d("owner/tiny", revision=revision).conv_in.bias[0] == 7
        config = rp.RePaintSchedulerConfig.from_pretrained("owner/tiny", revision=revision)
        assert config.num_train_timesteps == 500
    for repo, revision in (("owner/tiny", "other"), ("owner/tiny", "3" * 40), ("owner/other", None)):
        sentence = sentence_of(lambda name=repo, r=revision: load_pretrained(name, revision=r))
        assert sentence.startswith(
            f"{repo} is neither a folder here nor a repository that could be reached"
        )


def test_cache_without_weights_is_refused_offline(hub: Path, folder):
    (folder / "unet" / WEIGHTS).unlink()
    shutil.copytree(folder, hub / "models--owner--tiny" / "snapshots" / COMMITS["main"])
    sentence = sentence_of(lambda: load_pretrained("owner/tiny", revision=COMMITS["main"]))
    assert sentence.endswith(f"unet/{WEIGHTS} does not exist")


def test_downloads_go_to_the_folder_that_is_asked_for(hub: Path, folder, unet, tmp_path: Path):
    cache = tmp_path / "elsewhere"
    repository = cache / "models--owner--tiny"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(COMMITS["main"])
    shutil.copytree(folder, repository / "snapshots" / COMMITS["main"])
    for kind in (str, Path):
        assert_same_parameters(load_pretrained("owner/tiny", cache_dir=kind(cache))[0], unet, rtol=0)
        assert load_unet2d("owner/tiny", "unet", cache_dir=kind(cache)).config == unet.config
        rp.RePaintSchedulerConfig.from_pretrained("owner/tiny", "scheduler", cache_dir=kind(cache))
    assert "owner/tiny is neither a folder" in sentence_of(lambda: load_pretrained("owner/tiny"))


class HubServer(http.server.ThreadingHTTPServer):
    """What `snapshot_download` asks the hub for, answered from folders here."""

    def __init__(self, repositories: dict[str, Path]):
        super().__init__(("127.0.0.1", 0), HubHandler)
        self.repositories = repositories
        self.downloads: list[str] = []
        self.fails = False
        self.tokens: set[str | None] = set()


class HubHandler(http.server.BaseHTTPRequestHandler):
    server: HubServer

    def do_GET(self) -> None:
        self.server.tokens.add(self.headers.get("Authorization"))
        path = urllib.parse.unquote(urllib.parse.urlsplit(self.path).path)
        match = re.fullmatch(r"/(?:api/models/)?(\w+/\w+)/(revision|tree|resolve)/(\w+)/?(.*)", path)
        repository = self.server.repositories.get(match[1]) if match else None
        if self.server.fails:
            self.wfile.write(b"no answer that HTTP knows")
        elif match is None or repository is None:
            self.answer(404, b"", {"X-Error-Code": "RepoNotFound"})
        elif match[3] not in ("main", COMMITS["main"]):
            self.answer(404, b"", {"X-Error-Code": "RevisionNotFound"})
        elif match[2] == "resolve":
            content = (repository / match[4]).read_bytes()
            etag = hashlib.sha256(content).hexdigest()
            self.answer(200, content, {"ETag": f'"{etag}"', "X-Repo-Commit": COMMITS["main"]})
            if self.command == "GET":
                self.server.downloads.append(match[4])
        else:
            files = [path for path in repository.rglob("*") if path.is_file()]
            names = {str(path.relative_to(repository)): path.stat().st_size for path in files}
            tree = [{"type": "file", "path": n, "size": size, "oid": "0" * 40} for n, size in names.items()]
            info = {"id": match[1], "sha": COMMITS["main"], "siblings": [{"rfilename": n} for n in names]}
            self.answer(200, json.dumps(tree if match[2] == "tree" else info).encode(), {})

    do_HEAD = do_GET  # noqa: N815

    def answer(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def log_message(self, *arguments: object) -> None:
        pass


@pytest.fixture
def server(hub: Path, set_hub_constants, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    """A hub on this machine, and its client online."""
    from huggingface_hub import utils

    forget_session = getattr(utils, "close_session", None) or utils.reset_sessions
    with HubServer({}) as server:
        url = f"http://127.0.0.1:{server.server_address[1]}"
        template = url + "/{repo_id}/resolve/{revision}/{filename}"
        set_hub_constants(HF_HUB_OFFLINE=False, ENDPOINT=url, HUGGINGFACE_CO_URL_TEMPLATE=template)
        for name in ("NO_PROXY", "no_proxy"):
            monkeypatch.setenv(name, "127.0.0.1")
        forget_session()
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()
        forget_session()


def add_unwanted_files(folder: Path) -> None:
    """What repositories have beside the weights that are wanted."""
    for name in (
        "diffusion_pytorch_model.fp16.safetensors",
        "diffusion_pytorch_model.non_ema.safetensors",
        "diffusion_pytorch_model-00001-of-00002.fp16.safetensors",
        "diffusion_pytorch_model.fp16-00001-of-00002.safetensors",
        "diffusion_pytorch_model.safetensors.index.fp16.json",
        "diffusion_pytorch_model.fp16.bin",
        TORCH_WEIGHTS,
        "README.md",
    ):
        (folder / name).write_bytes(b"unwanted")


@pytest.mark.parametrize(("flat", "sharded"), [(False, False), (True, False), (False, True)])
def test_files_that_are_wanted_are_downloaded_once(server: HubServer, folder, unet, flat, sharded):
    if sharded:
        shard(folder / "unet")
    if flat:
        flatten(folder)
    wanted = sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
    for each in (folder, *(path for path in folder.iterdir() if path.is_dir())):
        add_unwanted_files(each)
    server.repositories["owner/tiny"] = folder
    for revision in (None, COMMITS["main"]):
        assert_same_parameters(load_pretrained("owner/tiny", revision=revision)[0], unet, rtol=0)
        assert sorted(server.downloads) == wanted
    server.shutdown()
    server.server_close()
    assert_same_parameters(load_pretrained("owner/tiny")[0], unet, rtol=0)


@pytest.fixture
def stable_diffusion(folder: Path) -> Path:
    """A repository with the layout of Stable Diffusion's, of which only the names of classes matter."""
    edit_json(folder / "unet" / "config.json", _class_name="UNet2DConditionModel", cross_attention_dim=768)
    shutil.copytree(folder / "unet", folder / "vae")
    autoencoder = {"_class_name": "AutoencoderKL", "norm_num_groups": 1, "block_out_channels": [4]}
    (folder / "vae" / "config.json").write_text(json.dumps(autoencoder))
    return folder


@pytest.mark.parametrize("indexed", [True, False])
def test_stable_diffusion_is_refused_before_weights_are_fetched(
    server: HubServer, stable_diffusion, indexed: bool
):
    edit_json(stable_diffusion / "model_index.json", vae=["diffusers", "AutoencoderKL"])
    if not indexed:
        (stable_diffusion / "model_index.json").unlink()
    server.repositories["owner/sd"] = stable_diffusion
    for load in (lambda: load_pretrained("owner/sd"), lambda: load_unet2d("owner/sd", "unet")):
        sentence = sentence_of(load)
        assert sentence.endswith(
            "unet/config.json is of a UNet2DConditionModel, only UNet2DModel is supported"
        )
    assert server.downloads and all(name.endswith(".json") for name in server.downloads)


def test_pipelines_with_other_parts_are_refused_before_weights_are_fetched(server, stable_diffusion):
    edit_json(stable_diffusion / "model_index.json", text_encoder=["transformers", "CLIPTextModel"])
    server.repositories["owner/sd"] = stable_diffusion
    assert "with text_encoder; only pipelines of an" in sentence_of(lambda: load_pretrained("owner/sd"))
    assert all(name.endswith(".json") for name in server.downloads)


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("unet/config.json", {"layers_per_block": 0}, "layers_per_block is 0, expected"),
        ("unet/config.json", {"time_embedding_type": "fourier"}, "time_embedding_type is 'fourier', exp"),
        (SCHEDULER, {"_class_name": "LCMScheduler"}, "the scheduler's config is of a LCMScheduler"),
        ("vae/config.json", {"_class_name": "AutoencoderTiny"}, "is of a AutoencoderTiny, expected"),
        ("vae/config.json", {"norm_num_groups": 3}, "block_out_channels has 4, expected a multiple of"),
    ],
)
def test_settings_that_are_not_supported_are_refused_before_weights_are_fetched(
    server: HubServer, stable_diffusion, unet_config, name: str, changes: dict, message: str
):
    (stable_diffusion / "unet" / "config.json").write_text(json.dumps(unet_config.to_dict()))
    edit_json(stable_diffusion / "model_index.json", vae=["diffusers", "AutoencoderKL"])
    edit_json(stable_diffusion / name, **changes)
    server.repositories["owner/latent"] = stable_diffusion
    assert message in sentence_of(lambda: load_pretrained("owner/latent"))
    assert all(name.endswith(".json") for name in server.downloads)


def test_an_autoencoder_of_another_class_is_refused_before_weights_are_fetched(server: HubServer, folder):
    server.repositories["owner/tiny"] = folder
    sentence = sentence_of(lambda: load_autoencoder("owner/tiny", "unet"))
    assert sentence.endswith("is of a UNet2DModel, expected AutoencoderKL or VQModel")
    assert server.downloads == ["unet/config.json"]


@pytest.mark.parametrize("subfolder", ["unet_ema", "checkpoint-500", "checkpoint-500/unet_ema"])
def test_files_of_a_subfolder_alone_are_downloaded(server: HubServer, folder, tmp_path: Path, subfolder):
    repository = tmp_path / "repository"
    shutil.copytree(folder, repository)
    for name in ("unet_ema", "checkpoint-500/unet", "checkpoint-500/unet_ema", "checkpoint-600/unet"):
        shutil.copytree(folder / "unet", repository / name)
    server.repositories["owner/tiny"] = repository
    load_pretrained("owner/tiny", subfolder=subfolder)
    inner = "checkpoint-500/unet" if subfolder == "checkpoint-500" else subfolder
    assert sorted(server.downloads) == sorted(
        ["model_index.json", SCHEDULER, f"{inner}/config.json", f"{inner}/{WEIGHTS}"]
    )


def test_token_is_sent_with_every_request(server: HubServer, folder):
    server.repositories["owner/tiny"] = folder
    load_pretrained("owner/tiny", token="hf_secret")
    assert server.tokens == {"Bearer hf_secret"}
    server.tokens.clear()
    load_unet2d("owner/tiny", "unet", token="hf_other")
    rp.RePaintSchedulerConfig.from_pretrained("owner/tiny", "scheduler", token="hf_other")
    assert server.tokens == {"Bearer hf_other"}


def test_variant_alone_is_downloaded_or_asked_for(server: HubServer, folder, unet):
    (folder / "unet" / WEIGHTS).rename(folder / "unet" / WEIGHTS.replace(".", ".fp16."))
    server.repositories["owner/tiny"] = folder
    sentence = sentence_of(lambda: load_pretrained("owner/tiny"))
    assert sentence == f"owner/tiny has no {WEIGHTS}; there are weights of variant='fp16'"
    assert not any(name.endswith("safetensors") for name in server.downloads)
    assert_same_parameters(load_pretrained("owner/tiny", variant="fp16")[0], unet, rtol=0)
    assert sentence_of(lambda: load_unet2d("owner/tiny", "unet", variant="bf16")).startswith(
        f"owner/tiny has no {WEIGHTS.replace('.', '.bf16.')}; there are weights of variant='fp16'"
    )


def test_repository_with_torch_s_files_alone_asks_for_torch(server: HubServer, folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    (folder / "unet" / WEIGHTS).rename(folder / "unet" / TORCH_WEIGHTS)
    server.repositories["owner/tiny"] = folder
    sentence = sentence_of(lambda: load_pretrained("owner/tiny"))
    assert f"unet/{TORCH_WEIGHTS} is a file of torch, and reading it needs torch" in sentence
    assert f"unet/{TORCH_WEIGHTS}" in server.downloads


@pytest.mark.parametrize(
    ("repo", "revision", "fails", "reason"),
    [
        ("owner/other", None, False, "RepositoryNotFoundError: 404"),
        ("owner/tiny", "other", False, "RevisionNotFoundError: 404"),
        ("owner/tiny", None, True, "Error"),
    ],
)
def test_repository_that_the_hub_does_not_give_is_refused(server, folder, repo, revision, fails, reason):
    server.repositories["owner/tiny"] = folder
    server.fails = fails
    sentence = sentence_of(lambda: load_pretrained(repo, revision=revision))
    assert sentence.startswith(
        f"{repo} is neither a folder here nor a repository that could be reached on "
    )
    assert reason in sentence
