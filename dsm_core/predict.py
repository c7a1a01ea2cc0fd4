"""`dsm-predict`: which voxels of a scan answer these phrases?"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import nibabel
import numpy as np

from dsm_core.checkpoint import Checkpoint, CheckpointError, load_checkpoint
from dsm_core.config import TextConfig
from dsm_core.data.faults import DatalistError
from dsm_core.device import DeviceError, find_device
from dsm_core.hosts import HostError
from dsm_core.inference import NoPriorError, Predictor
from dsm_core.phrase_cache import cache_folder, with_cached_phrases
from dsm_core.predict_arguments import add_arguments
from dsm_core.prediction_files import output_stem, write_prediction
from dsm_core.text_composition import Composition, with_composition
from dsm_core.text_space import TextSpace, TextSpaceError


class PredictError(ValueError):
    """A request that cannot be answered; the message says what was found and what was wanted."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point; exit code 0, or 2 with one line on stderr and nothing written."""
    parser = argparse.ArgumentParser(prog="dsm-predict", description="Segment whatever can be named in a CT scan.")
    add_arguments(parser)
    return answer(parser.parse_args(arguments))


def answer(options: argparse.Namespace) -> int:
    """Do what the options of `add_arguments` say; the exit code of `main`."""
    try:
        _run(options)
    except (PredictError, CheckpointError, TextSpaceError, HostError, NoPriorError, DatalistError, OSError) as error:
        what = error.details() if isinstance(error, DatalistError) else str(error)
        print(f"dsm-predict: {' '.join(what.split())}", file=sys.stderr)
        return 2
    return 0


def _run(options: argparse.Namespace) -> None:
    queries = _queries(options.query)
    outputs = _outputs(options, queries)
    if not 0 < options.threshold < 1:
        raise PredictError(f"--threshold wants a probability between 0 and 1, found {options.threshold}")
    scan = _open_scan(options.scan, options.allow_non_ct)
    checkpoint = load_checkpoint(options.checkpoint)
    predictor = _predictor(checkpoint, options)
    if options.anomaly:
        predictor.check_prior()
    classes = predictor.understand(queries) if queries else ()
    print(f"scan {_sizes(scan.shape)} voxels of {_sizes(scan.header.get_zooms())} mm")
    print(f"worked on at {_sizes(checkpoint.data.spacing_mm)} mm")
    print(f"text encoder: {predictor.text.encoder}")
    places = predictor.places_searched(classes)
    for query, info in zip(queries, classes, strict=True):
        known = "a class of the model" if info.name in predictor.text.names else "a free phrase"
        place = f", {places[info.name]}" if info.name in places else ""
        provenance = _provenance(predictor.text, query)
        print(f"  {query!r}: {info.kind} {info.name!r}, {known}{place}{provenance}")
    if options.dry_run:
        print(f"dry run: would write {' and '.join(f'{path}' for path in outputs)}")
        return
    prediction = predictor.predict(
        options.scan,
        queries,
        options.threshold,
        keep_probabilities=options.probability,
        keep_anomaly=options.anomaly is not None,
        progress=True,
    )
    for remark in prediction.remarks:
        print(f"note: {remark}")
    written = write_prediction(prediction, queries, scan, options.output, options.anomaly, predictor.text.encoder)
    legend = zip(queries, prediction.volumes_ml(), prediction.presence.tolist(), strict=True)
    for value, (query, volume_ml, presence) in enumerate(legend, start=1):
        print(f"  {value} = {query}: {volume_ml:.1f} ml, presence {presence:.2f}")
    print(*written, sep="\n")


def _provenance(text: TextSpace, query: str) -> str:
    """What is to be known of a phrase's vector."""
    is_composed = isinstance(text.phrase_encoder, Composition) and text.unknown([query])
    rest = text.left_out(query)
    return (f"; vector {Composition.name}, since no text tower is at hand" if is_composed else "") + (
        f"; too long for the text tower, not read: {rest!r}" if rest else ""
    )


def _sizes(lengths: Sequence[float]) -> str:
    return " x ".join(f"{float(length):.3g}" for length in lengths)


def _outputs(options: argparse.Namespace, queries: Sequence[str]) -> list[Path]:
    """The images to be written, each found to have a place."""
    if not queries and options.anomaly is None:
        raise PredictError("nothing is asked: give --query PHRASE with -o OUT.nii.gz, or --anomaly OUT.nii.gz")
    if bool(queries) != bool(options.output):
        found = "--query without -o" if queries else "-o without --query"
        raise PredictError(f"found {found}; the label map wants both")
    named = [(flag, path) for flag, path in (("-o", options.output), ("--anomaly", options.anomaly)) if path]
    for flag, path in named:
        if output_stem(path) is None:
            raise PredictError(f"{flag} wants a name ending in .nii.gz or .nii, found {path}")
        if not path.parent.is_dir():
            raise PredictError(f"the folder {path.parent} of {flag} does not exist; create it first")
        if path.is_dir() or path.resolve() == options.scan.resolve():
            raise PredictError(
                f"{flag} {path} would overwrite {'a folder' if path.is_dir() else 'the scan'}; name another"
            )
    if len(named) == 2 and options.output.resolve() == options.anomaly.resolve():
        raise PredictError(f"-o and --anomaly name the same file {options.output}; name two")
    return [path for _, path in named]


def _queries(phrases: Sequence[str]) -> list[str]:
    queries = list(dict.fromkeys(" ".join(phrase.split()) for phrase in phrases))
    if "" in queries:
        raise PredictError("--query wants a phrase such as 'liver tumor', found an empty one")
    if len(queries) > 255:
        raise PredictError(f"a label map holds 255 queries, found {len(queries)}; ask in several runs")
    return queries


def _open_scan(path: Path, allow_non_ct: bool) -> nibabel.Nifti1Image:
    """The scan, found to be one finite 3-D volume that looks like CT."""
    if not path.is_file():
        raise PredictError(f"no scan at {path}")
    try:
        scan: nibabel.Nifti1Image = nibabel.load(path)  # type: ignore[attr-defined, assignment]
        if len(scan.shape) != 3:
            raise PredictError(f"{path}: found {len(scan.shape)} dimensions {scan.shape}, wanted one 3-D volume")
        values = np.asarray(scan.dataobj, dtype=np.float32)
    except PredictError:
        raise
    except Exception as error:  # nibabel, zlib and numpy each raise their own on a broken file
        raise PredictError(f"{path} cannot be read as a NIfTI volume ({type(error).__name__}: {error})") from error
    if not np.isfinite(values).all():
        raise PredictError(f"{path}: found voxels that are NaN or infinite, wanted finite values in every voxel")
    # Fat lies near -100 HU and air near -1000: no CT of a body is without them, while MR, PET, label maps and 8-bit
    # pictures have no negative values, and normalised scans none below about -10.
    air_or_fat = float((values < -50).mean())
    if not allow_non_ct and (air_or_fat < 0.001 or values.max() < 0):
        raise PredictError(
            f"{path} does not look like CT in Hounsfield units: values {values.min():g} to {values.max():g}, "
            f"{100 * air_or_fat:.2f} % of the voxels below -50 HU (wanted 0.1 % or more, and soft tissue above 0); "
            "rescale it, or give --allow-non-ct to go on"
        )
    return scan


def _predictor(checkpoint: Checkpoint, options: argparse.Namespace) -> Predictor:
    if options.text_weights:
        recipe, usual = checkpoint.text.recipe, TextConfig()
        config = TextConfig(
            encoder="open_clip",
            model=recipe.model or usual.model,
            weights=options.text_weights,
            prompts=recipe.prompts or usual.prompts,
        )
        checkpoint = replace(checkpoint, text=checkpoint.text.with_encoder(config))
    else:
        folder = options.phrase_cache or cache_folder()
        checkpoint = replace(checkpoint, text=with_composition(with_cached_phrases(checkpoint.text, folder)))
    try:
        device = find_device(options.device)
    except DeviceError as error:
        raise PredictError(f"--{error}") from error
    return Predictor.from_checkpoint(checkpoint, device, options.host_margin_mm, options.host)


if __name__ == "__main__":
    sys.exit(main())
