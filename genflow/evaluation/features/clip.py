"""CLIP from a local folder, as transformers saves it: pictures and captions as unit vectors in one space.

    vision_model   patches and a class token + position embeddings -> norm -> layers (those of the text half, but not
                   causal) -> a norm of the class token -> linear
    text_model     see `text_encoders/clip.py`

Pictures are resized (bicubic) so that the shorter side fits, cropped in the middle, and standardized with the mean and
deviation of preprocessor_config.json.

References:
    CLIP (Radford et al., 2021) https://arxiv.org/abs/2103.00020
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from pydantic import Field
from torch import Tensor, nn

from genflow.errors import DataError, UsageError
from genflow.system.source_hash import digest
from genflow.text_encoders.base import NetConfig, embedding, parse_config, require_heads
from genflow.text_encoders.clip import Layer, half
from genflow.text_encoders.folder import ModelFolder, read_json
from genflow.text_encoders.folder_encoder import FolderEncoder

BATCH = 50  # pictures
PREPROCESSOR = "preprocessor_config.json"
MEAN, DEVIATION = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)  # of the published models


class Config(NetConfig):
    """The keys of `vision_config` that decide the net; see `NetConfig`."""

    vocab_size: int = 1  # a key of text nets
    hidden_size: int = Field(768, ge=1)
    intermediate_size: int = Field(3072, ge=1)
    projection_dim: int = Field(512, ge=1)
    num_hidden_layers: int = Field(12, ge=1)
    num_attention_heads: int = Field(12, ge=1)
    image_size: int = Field(224, ge=1)
    patch_size: int = Field(32, ge=1)
    hidden_act: str = "quick_gelu"
    layer_norm_eps: float = 1e-5


class Vision(nn.Module):
    """The picture half; see the module."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        D, eps, patch = config.hidden_size, config.layer_norm_eps, config.patch_size
        self.embeddings = nn.ParameterDict({"class_embedding": nn.Parameter(torch.empty(D))})
        self.patch_embedding = nn.Conv2d(3, D, patch, patch, bias=False)
        self.position_embedding = embedding((config.image_size // patch) ** 2 + 1, D)
        self.pre_layrnorm, self.post_layernorm = nn.LayerNorm(D, eps), nn.LayerNorm(D, eps)  # spelled as in the files
        self.layers = nn.ModuleList(Layer(config, causal=False) for _ in range(config.num_hidden_layers))
        self.visual_projection = nn.Linear(D, config.projection_dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Standardized pictures x (B, 3, S, S) as vectors (B, P)."""
        patches = self.patch_embedding(x).flatten(2).transpose(1, 2)
        first = self.embeddings["class_embedding"].expand(len(x), 1, -1)
        x = self.pre_layrnorm(torch.cat([first, patches], 1) + self.position_embedding.weight)
        for layer in self.layers:
            x = layer(x)
        return self.visual_projection(self.post_layernorm(x[:, 0]))


def _own_name(stored: str) -> str:
    """The name of a tensor in `Vision`, from that in a file."""
    name = stored.removeprefix("vision_model.")
    if name != "embeddings.class_embedding":
        name = name.removeprefix("embeddings.")
    return name.removeprefix("encoder.") if stored.startswith("vision_model.") else stored


class Clip:
    """Both halves of a CLIP model.

    Args:
        home: the folder.

    Raises:
        UsageError: it contains no whole CLIP model.
        DataError: a file is missing or damaged.
    """

    def __init__(self, home: Path) -> None:
        known, stated = _read(home)
        self.name, self._text = folder_id(str(home)), FolderEncoder(home, str(home))
        self.size = known.image_size
        with torch.device("meta"):
            self._net = Vision(known).eval().requires_grad_(False)
        shapes = {name: tensor.shape for name, tensor in self._net.state_dict().items()}
        self._net.load_state_dict(ModelFolder(home).load(shapes, _own_name), assign=True)
        self._mean, self._deviation = (
            torch.tensor(stated.get(key) or usual).reshape(3, 1, 1)
            for key, usual in (("image_mean", MEAN), ("image_std", DEVIATION))
        )

    @torch.inference_mode()
    def pictures(self, display: np.ndarray) -> np.ndarray:
        """Unit vectors (N, P) of pictures (N, H, W, C) uint8 0..255, of one or three channels."""
        found = []
        for start in range(0, len(display), BATCH):
            x = torch.stack([self._input(picture) for picture in display[start : start + BATCH]])
            found.append(F.normalize(self._net(x), dim=1).numpy())
        return np.concatenate(found)

    def captions(self, captions: Sequence[str]) -> np.ndarray:
        """Unit vectors (N, P) of captions."""
        vectors = np.stack([pooled for _, pooled in self._text.encode(captions)])
        return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)

    def _input(self, picture: np.ndarray) -> Tensor:
        shown = Image.fromarray(picture.squeeze(-1) if picture.shape[-1] == 1 else picture).convert("RGB")
        wide, high = (side * self.size // min(shown.size) for side in shown.size)
        left, top = (wide - self.size) // 2, (high - self.size) // 2
        resized = shown.resize((wide, high), Image.Resampling.BICUBIC)
        x = torch.from_numpy(np.array(resized.crop((left, top, left + self.size, top + self.size))))
        return (x.permute(2, 0, 1).float() / 255 - self._mean) / self._deviation


def folder_id(folder: str) -> str:
    """The name of the CLIP model in a folder, with a digest of its files.

    Raises:
        UsageError: there is no whole CLIP model.
        DataError: a file is missing or damaged.
    """
    home = Path(folder).expanduser()
    known, stated = _read(home)
    return f"clip@{digest([FolderEncoder(home, str(home)).id, known.model_dump(mode='json'), stated])}"


def _read(home: Path) -> tuple[Config, dict[str, Any]]:
    """The sizes of the picture half, and what preprocessor_config.json states of pictures."""
    cure = "name a folder that transformers' CLIPModel saved"
    if not (home / "config.json").is_file():
        raise UsageError(f"evaluate.clip: {home} has no config.json", cure)
    config = read_json(home / "config.json")
    if (what := config.get("model_type")) != "clip":
        raise UsageError(f"evaluate.clip: {home} is {what!r}, not a whole CLIP model of pictures and text", cure)
    if missing := {"visual_projection.weight", "text_projection.weight"} - ModelFolder(home).tensors():
        raise DataError(f"evaluate.clip: the weights in {home} have no {min(missing)}", cure)
    known = parse_config(Config, half(config, "vision"))
    require_heads(known.hidden_size, known.num_attention_heads)
    stated = read_json(home / PREPROCESSOR) if (home / PREPROCESSOR).is_file() else {}
    return known, {key: stated.get(key) for key in ("image_mean", "image_std")}
