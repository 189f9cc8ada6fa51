"""One page per run: a single HTML file that needs no network."""

from auxin.report.gallery import as_inputs
from auxin.report.live import LivePage
from auxin.report.models import final_rung, images_of, model_of, require_images_of
from auxin.report.page import write_report

__all__ = ["LivePage", "as_inputs", "final_rung", "images_of", "model_of", "require_images_of", "write_report"]
