"""The plots of a report as files."""

import io

from jaxslim.reporting.canvas import report_style
from jaxslim.reporting.plot_channels import plot_channels
from jaxslim.reporting.plot_curves import plot_curves
from jaxslim.reporting.plot_ratios import plot_accuracy, plot_compared
from jaxslim.reporting.plot_scales import plot_scales
from jaxslim.reporting.results import Report

PLOTS = {
    "accuracy": plot_accuracy,
    "compared": plot_compared,
    "channels": plot_channels,
    "scales": plot_scales,
    "curves": plot_curves,
}


def draw(report: Report) -> dict[str, bytes]:
    """The plots that the report has data for, as PNG and SVG, by file name. The same report gives the same files."""
    files = {}
    with report_style():
        for name, plot in PLOTS.items():
            if figure := plot(report):
                for form, metadata in (("png", None), ("svg", {"Date": None})):
                    file = io.BytesIO()
                    figure.savefig(file, format=form, metadata=metadata)
                    files[f"{name}.{form}"] = file.getvalue()
    return files
