"""Where the tests find files."""

from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
#: Projects as QuPath 0.2 to 0.7 wrote them, each in the folder of its version.
SAMPLES = ROOT / "tests" / "data" / "qupath-samples"
#: Shapes, an image, and what QuPath measures of them.
MEASUREMENTS = ROOT / "tests" / "data" / "qupath-measurements"
#: GeoJSON as users and other programs have it: legal for the most part, and odd.
FAULTS = ROOT / "tests" / "data" / "faults"
#: Development data that do not come with the project; tests marked ``shared`` need them.
SHARED = ROOT.parent / "shared"
