"""Hashes of the inputs of results: they decide whether a stored result may be used again."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from hashlib import blake2b
from typing import Any

import shapely

from qpnuclei._version import __version__
from qpnuclei.pipeline.options import RunOptions
from qpnuclei.pipeline.planning.plan_parts import PlannedSlide
from qpnuclei.qupath.model import Annotation
from qpnuclei.segmentation.engine import EngineSpec
from qpnuclei.system.files import resolved

#: Options that may change when a run is continued. The pixel size that is given for an image is
#: one of its own inputs: for the other images nothing changes.
_NOT_OF_REQUEST = frozenset({"device", "batch_size", "workers", "force", "run_dir", "mpp_by_image"})


def request_of(options: RunOptions) -> str:
    """Return a hash of the request of a run. A run that continues it has the same hash."""
    content = options.to_json(resolved)  # for any spelling of a path
    return hash_of({name: content[name] for name in content if name not in _NOT_OF_REQUEST})


def inputs_of(
    options: RunOptions,
    specs: Sequence[EngineSpec],
    slide: PlannedSlide,
    annotations: Sequence[Annotation],
    excluded: Sequence[Annotation],
    entry: Sequence[object],
) -> str:
    """Return a hash of all that was chosen and given for an image.

    Parameters
    ----------
    specs : sequence of EngineSpec
        Of the models that its pixel size chooses from.
    annotations : sequence of Annotation
        Those that are chosen.
    excluded : sequence of Annotation
        Those that are left out of the chosen.
    entry : sequence
        What the project says of the image, pixel size and stains, and the pixel size given for it.
    """
    chosen = [[str(a.id), a.name, shapely.to_wkb(a.geometry, hex=True)] for a in annotations]
    return hash_of(
        [
            __version__,
            request_of(options),
            [asdict(spec) for spec in specs],
            slide.content,
            chosen,
            [shapely.to_wkb(a.geometry, hex=True) for a in excluded],
            list(entry),
        ]
    )


def hash_of(content: Any) -> str:
    """Return a hash of JSON content; values of other types count as their text."""
    text = json.dumps(content, sort_keys=True, default=str)
    return blake2b(text.encode(errors="surrogatepass"), digest_size=20).hexdigest()
