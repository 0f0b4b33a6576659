"""The grid of patches of an image; needs no JAX."""


def patch_grid(image_size: tuple[int, int], patch_size: int, stride: int) -> tuple[int, int]:
    """Returns the rows and columns of patches. They overlap if the stride is below the patch size."""
    height, width = image_size
    return (height - patch_size) // stride + 1, (width - patch_size) // stride + 1


def num_patches(image_size: tuple[int, int], patch_size: int, stride: int) -> int:
    """Returns how many patches an image has."""
    rows, columns = patch_grid(image_size, patch_size, stride)
    return rows * columns
