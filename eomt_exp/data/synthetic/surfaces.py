"""Draws what anomalies are made of: fur, cloth, planks, panels."""

from __future__ import annotations

import numpy as np

from eomt_exp.data.synthetic.textures import Floats, cut, jitter, noise_tile

COATS = ((150, 104, 62), (96, 66, 44), (226, 218, 204), (62, 56, 54), (188, 148, 98),
         (120, 112, 106), (176, 92, 48))  # fmt: skip
WOODS = ((172, 128, 80), (146, 104, 64), (196, 158, 108), (120, 88, 60), (160, 140, 118))


def fur(rng: np.random.Generator, size: int) -> Floats:
    """Draw (size, size, 3) of short hair along the body, plain, pied like a cow's, or barred."""
    base = jitter(rng, COATS[rng.integers(len(COATS))], 12)
    hair = cut(noise_tile(0.4), rng, (size, size), 0.12, stretch=3.0)
    pied = cut(noise_tile(1.5), rng, (size, size), 0.5)
    coat = np.broadcast_to(base, (size, size, 3))
    if rng.random() < 0.45:
        other = jitter(rng, COATS[rng.integers(len(COATS))], 12)
        coat = np.where((pied > 0.1)[..., None], other, coat)
    belly = np.linspace(1.12, 0.8, size)[:, None, None]
    return (coat * belly * (1 + 0.13 * hair[..., None])).astype(np.float32)


def cloth(rng: np.random.Generator, size: int, base: Floats) -> Floats:
    """Draw (size, size, 3), woven, sometimes checked."""
    u = np.arange(size) * (2 * np.pi / max(size / 48, 1.5))
    weave = 0.06 * np.sin(u)[:, None] * np.sin(u)
    pitch = 2 * np.pi * rng.uniform(6, 12) * np.arange(size) / size
    check = (np.sin(pitch) > 0.4).astype(np.float32)
    depth = rng.choice([0.0, 0.16])
    shade = 1 + weave - depth * (check[:, None] + check)
    return (base * shade[..., None]).astype(np.float32)


def planks(rng: np.random.Generator, size: int) -> Floats:
    """Draw (size, size, 3) of boards with gaps, each of its own shade, the grain along them."""
    base = jitter(rng, WOODS[rng.integers(len(WOODS))], 12)
    board = np.arange(size) / size * rng.integers(6, 10)
    tone = rng.uniform(0.82, 1.12, 16)[board.astype(int)] * np.where(board % 1 < 0.1, 0.45, 1.0)
    grain = cut(noise_tile(0.6), rng, (size, size), 0.3, stretch=6.0)
    shade = tone[:, None] * (1 + 0.09 * grain)
    return (base * shade[..., None]).astype(np.float32)


def football(points: Floats, ink: Floats, skin: Floats) -> Floats:
    """Draw (n, n, 3), dark pentagons, pale hexagons, seams, at points (n, n, 3) of a sphere."""
    golden = (1 + 5**0.5) / 2
    pentagons = [(0, a, b * golden) for a in (-1, 1) for b in (-1, 1)]
    hexagons = [(0, a * golden, b / golden) for a in (-1, 1) for b in (-1, 1)]
    cube = [(a, b, c) for a in (-1, 1) for b in (-1, 1) for c in (-1, 1)]
    faces = [np.roll(f, k) for f in pentagons + hexagons for k in range(3)] + cube
    centres = np.array(faces, np.float32)
    centres /= np.linalg.norm(centres, axis=1, keepdims=True)
    # The planes of a truncated icosahedron's faces: pentagons lie a little further out.
    reach = points.astype(np.float32) @ centres.T / np.repeat([2.327, 2.267], [12, 20])
    two = np.partition(reach, -2, axis=-1)[..., -2:]
    dark = (reach.argmax(-1) < 12) | (two[..., 1] - two[..., 0] < 0.006)
    return np.where(dark[..., None], ink, skin)
