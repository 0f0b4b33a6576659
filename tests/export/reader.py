"""An export read by a program that knows nothing of ivt_jax: NumPy in float64, safetensors, tokenizers.

    python reader.py FOLDER INPUTS.npz OUT.npz

INPUTS: images (N, H, W, 3) uint8, captions (M,) str. OUT: image (N, D) and text (M, D) float64, at length 1.
"""

import json
import math
import sys

import numpy as np
from safetensors.numpy import load_file
from tokenizers import Tokenizer

erf = np.vectorize(math.erf)


class Tower:
    def __init__(self, folder):
        with open(f"{folder}/config.json", encoding="utf-8") as file:
            config = json.load(file)["config"]
        self.model, self.length = config["model"], config["text"]["length"]["sentence"]
        self.tensors = {k: v.astype(np.float64) for k, v in load_file(f"{folder}/model.safetensors").items()}
        self.tokenizer = Tokenizer.from_file(f"{folder}/tokenizer.json")

    def norm(self, x, name, layer=..., epsilon=1e-6):
        centred = x - x.mean(-1, keepdims=True)
        scale, bias = (self.tensors[f"{name}.{kind}"][layer] for kind in ("scale", "bias"))
        return centred / np.sqrt((centred**2).mean(-1, keepdims=True) + epsilon) * scale + bias

    def dense(self, x, name, layer=...):
        return x @ self.tensors[f"{name}.kernel"][layer] + self.tensors[f"{name}.bias"][layer]

    def attention(self, x, layer):
        heads = self.model["num_heads"]
        size = x.shape[1] // heads
        q, k, v = np.split(self.dense(x, "blocks.attn.qkv", layer), 3, axis=1)
        mixed = np.zeros_like(x)
        for head in (slice(i * size, (i + 1) * size) for i in range(heads)):
            scores = q[:, head] @ k[:, head].T / math.sqrt(size)
            weights = np.exp(scores - scores.max(-1, keepdims=True))
            mixed[:, head] = weights / weights.sum(-1, keepdims=True) @ v[:, head]
        return self.dense(mixed, "blocks.attn.proj", layer)

    def embed(self, x, mlp):
        """Tokens of one input (N, D) -> its embedding (D,)."""
        for layer in range(self.model["depth"]):
            x = x + self.attention(self.norm(x, "blocks.norm1", layer), layer)
            hidden = self.dense(self.norm(x, "blocks.norm2", layer), f"blocks.{mlp}.fc1", layer)
            x = x + self.dense(hidden * (1 + erf(hidden / math.sqrt(2))) / 2, f"blocks.{mlp}.fc2", layer)
        first = self.norm(x, "blocks.norm")[0]
        return first / np.linalg.norm(first)

    def image(self, pixels):
        side, stride = self.model["patch_size"], self.model["stride"]
        height, width, _ = pixels.shape
        values = (pixels / 255 - 0.5) / 0.5
        patches = [
            values[top : top + side, left : left + side].reshape(-1)
            for top in range(0, height - side + 1, stride)
            for left in range(0, width - side + 1, stride)
        ]
        cls, positions, types = (
            self.tensors[f"image_embedding.{name}"][0] for name in ("cls", "pos_embed", "type_embed")
        )
        tokens = np.concatenate([cls, self.dense(np.array(patches), "image_embedding")])
        return self.embed(tokens + positions + types, "mlp_vis")

    def text(self, caption):
        ids = self.tokenizer.encode(caption).ids
        if len(ids) > self.length:
            ids = ids[: self.length - 1] + ids[-1:]
        words, positions, types = (
            self.tensors[f"text_embedding.{name}"] for name in ("word", "position", "token_type")
        )
        return self.embed(
            self.norm(words[ids] + positions[: len(ids)] + types[0], "text_embedding", epsilon=1e-12), "mlp_txt"
        )


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
