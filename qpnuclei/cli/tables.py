"""How plans, summaries and projects look on the terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.markup import escape
from rich.table import Table

if TYPE_CHECKING:
    from qpnuclei.planning import ImagePlan
    from qpnuclei.summary import RunSummary


def plan_table(plans: list[ImagePlan]) -> Table:
    """Return what a run would do, one line per region of each image."""
    table = Table(title="Plan (nothing is changed)")
    for column in ("image", "annotation", "class"):
        table.add_column(column)
    for column in ("mm²", "µm/px", "read at", "tiles", "Mpx", "ours there"):
        table.add_column(column, justify="right")
    for plan in plans:
        for index, region in enumerate(plan.regions):
            first = index == 0
            table.add_row(
                escape(plan.entry.name) if first else "",
                escape(region.label),
                escape((region.annotation.class_name if region.annotation else None) or "–"),
                f"{plan.area_mm2(region):.3f}",
                f"{plan.scale.mpp[0]:.4g}" if first else "",
                f"{plan.scale.working_mpp[0]:.4g}" if first else "",
                str(len(plan.tiles)) if first else "",
                f"{plan.megapixels:.1f}" if first else "",
                str(len(plan.existing[index])),
            )
    return table


def summary_table(summary: RunSummary) -> Table:
    """Return the nuclei found, one line per annotation."""
    table = Table(title=f"{summary.nuclei} nuclei")
    for column in ("image", "annotation", "class"):
        table.add_column(column)
    for column in ("mm²", "nuclei", "per mm²"):
        table.add_column(column, justify="right")
    for image in summary.images:
        for index, region in enumerate(image.regions):
            table.add_row(
                escape(image.name) if index == 0 else "",
                escape(region.name),
                escape(region.class_name or "–"),
                f"{region.area_mm2:.3f}",
                str(region.nuclei),
                f"{region.per_mm2:.0f}",
            )
    return table
