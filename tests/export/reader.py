"""An export read by a program that knows nothing of ivt_jax: NumPy in float64, safetensors, tokenizers.

    python reader.py FOLDER INPUTS.npz OUT.npz

INPUTS: images (N, H, W, 3) uint8, captions (M,) str. OUT: image (N, D) and text (M, D) float64, at length 1.
"""

import json
import math
import sys

import numpy as np
from safetensors import safe_open
from tokenizers import Tokenizer

erf = np.vectorize(math.erf)


def norm(x, scale, bias, epsilon):
    centred = x - x.mean(-1, keepdims=True)
    return centred / np.sqrt((centred**2).mean(-1, keepdims=True) + epsilon) * scale + bias


class Tower:
    def __init__(self, folder):
        with open(f"{folder}/config.json", encoding="utf-8") as file:
            self.config = json.load(file)["config"]
        with safe_open(f"{folder}/model.safetensors", "numpy") as file:
            self.tensors = {name: file.get_tensor(name).astype(np.float64) for name in file.keys()}  # noqa: SIM118
        self.tokenizer = Tokenizer.from_file(f"{folder}/tokenizer.json")

    def get(self, name, layer=None):
        value = self.tensors[name]
        return value if layer is None else value[layer]

    def dense(self, x, name, layer):
        return x @ self.get(f"blocks.{name}.kernel", layer) + self.get(f"blocks.{name}.bias", layer)

    def attention(self, x, layer):
        tokens, width = x.shape
        heads = self.config["model"]["num_heads"]
        size = width // heads
        qkv = self.dense(x, "attn.qkv", layer)
        mixed = np.zeros((tokens, width))
        for head in range(heads):
            q, k, v = (qkv[:, part * width + head * size : part * width + (head + 1) * size] for part in range(3))
            scores = q @ k.T / math.sqrt(size)
            weights = np.exp(scores - scores.max(-1, keepdims=True))
            mixed[:, head * size : (head + 1) * size] = weights / weights.sum(-1, keepdims=True) @ v
        return self.dense(mixed, "attn.proj", layer)

    def embed(self, x, mlp):
        """Tokens of one input (N, D) -> its embedding (D,)."""
        for layer in range(self.config["model"]["depth"]):
            for name in ("norm1", "norm2"):
                y = norm(x, self.get(f"blocks.{name}.scale", layer), self.get(f"blocks.{name}.bias", layer), 1e-6)
                if name == "norm1":
                    x = x + self.attention(y, layer)
                else:
                    hidden = self.dense(y, f"{mlp}.fc1", layer)
                    x = x + self.dense(hidden * (1 + erf(hidden / math.sqrt(2))) / 2, f"{mlp}.fc2", layer)
        first = norm(x, self.get("blocks.norm.scale"), self.get("blocks.norm.bias"), 1e-6)[0]
        return first / np.linalg.norm(first)

    def image(self, pixels):
        side, stride = self.config["model"]["patch_size"], self.config["model"]["stride"]
        height, width, _ = pixels.shape
        values = (pixels / 255 - 0.5) / 0.5
        patches = [
            values[top : top + side, left : left + side].reshape(-1)
            for top in range(0, height - side + 1, stride)
            for left in range(0, width - side + 1, stride)
        ]
        tokens = np.array(patches) @ self.get("image_embedding.kernel") + self.get("image_embedding.bias")
        tokens = np.concatenate([self.get("image_embedding.cls")[0], tokens])
        places = self.get("image_embedding.pos_embed")[0] + self.get("image_embedding.type_embed")[0]
        return self.embed(tokens + places, "mlp_vis")

    def text(self, caption):
        ids = self.tokenizer.encode(caption).ids
        length = self.config["text"]["length"]["sentence"]
        if len(ids) > length:
            ids = ids[: length - 1] + ids[-1:]
        tokens = self.get("text_embedding.word")[ids] + self.get("text_embedding.position")[: len(ids)]
        tokens = tokens + self.get("text_embedding.token_type")[0]
        tokens = norm(tokens, self.get("text_embedding.scale"), self.get("text_embedding.bias"), 1e-12)
        return self.embed(tokens, "mlp_txt")


def main():
    folder, inputs, out = sys.argv[1:]
    tower = Tower(folder)
    with np.load(inputs) as given:
        image = np.array([tower.image(pixels) for pixels in given["images"]])
        text = np.array([tower.text(str(caption)) for caption in given["captions"]])
    assert not {"ivt_jax", "input_pipeline", "jax", "flax", "orbax"} & set(sys.modules)
    np.savez(out, image=image, text=text)


if __name__ == "__main__":
    main()
