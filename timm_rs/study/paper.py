"""The paper's tables, read from results/paper.csv."""

from pathlib import Path

from timm_rs.files import SHIPPED, read_rows

PAPER = SHIPPED / 'results/paper.csv'


def published(path: Path = PAPER) -> dict[tuple[str, str], dict[str, str]]:
    """The paper's rows by model and image size; Table 7 and Figure 5, of which Table 3 is a rounded part."""
    return {(row['model'], row['img_size']): row for row in read_rows(path) if row['source'] != 'Table 3'}


def table_3(path: Path = PAPER) -> dict[tuple[str, str], dict[str, str]]:
    """The rows of Table 3 by model and image size: training at 32 images per core of a TPU v3, in bfloat16."""
    return {(row['model'], row['img_size']): row for row in read_rows(path) if row['source'] == 'Table 3'}
