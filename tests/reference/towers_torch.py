"""Computes the features of tiny CLIP and SigLIP models with transformers, for tests without PyTorch.

python tests/reference/towers_torch.py tests/data/towers_tiny.npz    # transformers 5.23, torch 2.13

Keys: KIND/weights/NAME of the tensors, as `save_pretrained` writes them; KIND/ids and KIND/mask; KIND/ACTIVATION/image
and text, the features, for each activation of the same weights; pixels (2, 20, 20, 3), normalised.
"""

import sys

import numpy as np
import torch
import transformers

IMAGE = {
    "hidden_size": 12, "num_hidden_layers": 2, "num_attention_heads": 3, "intermediate_size": 20, "image_size": 20,
    "patch_size": 5,
}  # fmt: skip
TEXT = {"num_hidden_layers": 3, "vocab_size": 33, "max_position_embeddings": 9}
END = 32  # CLIP's end of a text
CLIP_TEXT = {**TEXT, "hidden_size": 8, "num_attention_heads": 2, "intermediate_size": 16, "bos_token_id": 0}
SIGLIP_TEXT = {**TEXT, "hidden_size": 12, "num_attention_heads": 2, "intermediate_size": 28, "projection_size": 12}
ACTIVATIONS = {"clip": {"quick_gelu": "quick_gelu", "gelu": "gelu"}, "siglip": {"gelu_tanh": "gelu_pytorch_tanh"}}


def build(kind, activation):
    """In evaluation mode; what starts at 0 or 1 would hide mistakes, so every parameter gets noise of its own."""
    image = {**IMAGE, "hidden_act": activation}
    if kind == "clip":
        text = {**CLIP_TEXT, "eos_token_id": END, "hidden_act": activation}
        config = transformers.CLIPConfig(vision_config=image, text_config=text, projection_dim=6)
        model = transformers.CLIPModel(config)
    else:
        text = {**SIGLIP_TEXT, "bos_token_id": 0, "eos_token_id": 1, "hidden_act": activation}
        model = transformers.SiglipModel(transformers.SiglipConfig(vision_config=image, text_config=text))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            start = 1.0 if parameter.dim() == 1 else 0.0  # of norms; a bias of 1 does no harm
            parameter.copy_(start + 0.3 * torch.randn(parameter.shape, generator=generator))
    return model.eval()


def texts(kind):
    """Ids (3, 9) and their mask: CLIP's end with an end and padding; SigLIP attends to its padding."""
    rng = np.random.default_rng(3)
    ids = rng.integers(2, END, (3, 9))
    mask = np.ones(ids.shape, bool)
    for row, length in enumerate((9, 4, 6)):
        if kind == "clip":
            ids[row, 0], ids[row, length - 1] = 0, END
            mask[row, length:] = False
        ids[row, length:] = (
            END if kind == "clip" and row == 1 else 1
        )  # OpenAI pads with another id, transformers with the end
    return ids, mask


def pixels():
    return np.random.default_rng(2).normal(size=(2, 20, 20, 3)).astype(np.float32)


def features(model, ids):
    """The projected features, not normalised, of `pixels` and of ids."""
    with torch.no_grad():
        image = model.get_image_features(pixel_values=torch.tensor(pixels().transpose(0, 3, 1, 2)))
        text = model.get_text_features(input_ids=torch.tensor(ids))
    return [getattr(x, "pooler_output", x).numpy() for x in (image, text)]


def main():
    arrays = {"pixels": pixels()}
    for kind, activations in ACTIVATIONS.items():
        ids, arrays[f"{kind}/mask"] = texts(kind)
        arrays[f"{kind}/ids"] = ids.astype(np.int32)
        for ours, theirs in activations.items():
            model = build(kind, theirs)
            image, text = features(model, ids)
            arrays |= {f"{kind}/{ours}/image": image, f"{kind}/{ours}/text": text}
        arrays |= {f"{kind}/weights/{name}": x.numpy() for name, x in model.state_dict().items()}
    np.savez_compressed(sys.argv[1], **arrays)


if __name__ == "__main__":
    main()
