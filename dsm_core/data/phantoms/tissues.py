"""How bright the organs of a generated patient are: HU with or without contrast agent, timing, and texture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from dsm_core.data.phantoms.anatomy import Organs
from dsm_core.data.phantoms.canvas import Canvas
from dsm_core.data.phantoms.lesions import Lesion
from dsm_core.data.phantoms.shapes import Array, Shape, distance_in

CORTICAL_BONE_HU = 420.0
FATTY_LIVER_SHARE = 0.12


@dataclass(frozen=True)
class Contrast:
    """Mean attenuation of organs under one way of scanning.

    Attributes:
        enhancement: share of what contrast agent adds to the differences inside an organ: cortex against pyramids,
            tumour against host, one patient's timing against another's.
    """

    blood_hu: float
    spleen_hu: float
    liver_hu: float
    kidney_hu: float
    pancreas_hu: float
    stomach_wall_hu: float
    enhancement: float


CONTRASTS: Mapping[str, Contrast] = {
    "portal": Contrast(150.0, 115.0, 105.0, 180.0, 92.0, 72.0, 1.0),
    # Without agent, about as Lamba et al. 2014 measured them (doi:10.2214/AJR.12.10037).
    "native": Contrast(41.0, 47.0, 55.0, 31.0, 40.0, 42.0, 0.25),
}


def paint_organs(
    canvas: Canvas, organs: Organs, lesions: Mapping[str, Sequence[Lesion]], contrast: Contrast = CONTRASTS["portal"]
) -> None:
    """Every organ with its tumours, from the back to the front.

    Args:
        lesions: host organ -> its tumours.
    """
    rng = canvas.space.rng
    phase = contrast.enhancement * rng.normal(0, 1)  # above 0: earlier, brighter vessels and cortex
    blood_hu = contrast.blood_hu + 14 * phase + rng.normal(0, 8)
    for vessel in organs.vessels:
        canvas.paint(vessel, blood_hu)
    _paint_hollow(canvas, organs.duodenum, 4.0, rng.uniform(15, 35))
    _paint_hollow(canvas, organs.gallbladder, 2.0, rng.normal(10, 4))
    _paint_stomach(canvas, organs.stomach, contrast.stomach_wall_hu)
    base_hu = {
        "spleen": contrast.spleen_hu + 6 * phase + rng.normal(0, 7),
        "liver": contrast.liver_hu + 6 * phase + rng.normal(0, 8) - (28 if rng.random() < FATTY_LIVER_SHARE else 0),
        "kidney": contrast.kidney_hu + 12 * phase + rng.normal(0, 10),
        "pancreas": contrast.pancreas_hu + 5 * phase + rng.normal(0, 7),
    }
    for kidney, sinus in zip(organs.kidneys, organs.renal_sinuses, strict=True):
        _paint_kidney(canvas, kidney, sinus, base_hu["kidney"], contrast.enhancement)
    for name, shape, texture_hu in (
        ("spleen", organs.spleen, 4.0),
        ("liver", organs.liver, 4.0),
        ("pancreas", organs.pancreas, 7.0),
    ):
        canvas.paint(shape, base_hu[name] + canvas.texture(shape, texture_hu), name)
    for vessel in organs.hepatic_vessels:
        inside = np.maximum(vessel.distance, distance_in(organs.liver, vessel) + 2)
        canvas.paint(Shape(vessel.window, inside), blood_hu, is_part=True)
    for host, found in lesions.items():
        for lesion in found:
            canvas.paint(lesion.shape, _lesion_hu(canvas, lesion, base_hu[host], contrast.enhancement), lesion.name)
    canvas.paint(organs.postcava, blood_hu - 18 * contrast.enhancement + canvas.texture(organs.postcava, 3.0))
    canvas.paint(organs.aorta, blood_hu + canvas.texture(organs.aorta, 3.0), "aorta")
    _paint_spine(canvas, organs)


def _paint_hollow(canvas: Canvas, shape: Shape, wall_mm: float, content_hu: float) -> None:
    canvas.paint(shape, 62.0)
    canvas.paint(shape.inset(wall_mm), content_hu + canvas.texture(shape, 4.0), is_part=True)


def _paint_stomach(canvas: Canvas, stomach: Shape, wall_hu: float) -> None:
    """Enhancing wall, food and, above its level, gas; all of it is stomach."""
    rng, space = canvas.space.rng, canvas.space
    canvas.paint(stomach, rng.normal(wall_hu, 8) + canvas.texture(stomach, 4.0), "stomach")
    lumen = stomach.inset(rng.uniform(4, 5.5))
    canvas.paint(lumen, rng.uniform(5, 40) + 18 * space.noise(9.0)[stomach.window], is_part=True)
    height = np.broadcast_to(space.axes[1][stomach.window[1]][None, :, None], lumen.distance.shape)
    filled = height[lumen.distance < 0]
    if filled.size:
        canvas.paint_gas(lumen, float(np.quantile(filled, rng.uniform(0.62, 0.95))))


def _paint_kidney(canvas: Canvas, kidney: Shape, sinus: Shape, cortex_hu: float, enhancement: float) -> None:
    pyramids = np.clip((-kidney.distance - 6) / 4, 0, 1) * np.clip(0.7 + 0.5 * canvas.mottle[kidney.window], 0, 1)
    canvas.paint(kidney, cortex_hu - 35 * enhancement * pyramids + 5 * canvas.grain[kidney.window], "kidney")
    canvas.paint(sinus, -70 + 60 * np.clip(canvas.grain[sinus.window], 0, 2))


def _lesion_hu(canvas: Canvas, lesion: Lesion, host_hu: float, enhancement: float) -> Array:
    hu = host_hu + enhancement * lesion.core_hu + 6 * canvas.grain[lesion.shape.window]
    if lesion.rim_hu is None:
        return hu
    rim = np.clip((lesion.shape.distance + 4.5) / 2.5, 0, 1)
    return hu + enhancement * (lesion.rim_hu - lesion.core_hu) * rim


def _paint_spine(canvas: Canvas, organs: Organs) -> None:
    rng, bone = canvas.space.rng, organs.vertebrae
    trabecular_hu = rng.normal(175, 30)
    shell = np.clip((bone.distance + 4) / 2.5, 0, 1)
    canvas.paint(organs.spinal_canal, 28.0)
    canvas.paint(organs.discs, rng.normal(85, 6) + canvas.texture(organs.discs, 4.0))
    hu = trabecular_hu + 25 * canvas.grain[bone.window] + (CORTICAL_BONE_HU - trabecular_hu) * shell
    canvas.paint(bone, hu, "vertebrae")
