"""What a person looks at: the table at the end of a run, and a page of tables and figures.

`final_table` and `headline_lines` need nothing but the numbers. The page is made by
`python -m cyclip_jax.report` and by `cyclip_jax.report.write.write_report`, which imports
matplotlib.
"""

from cyclip_jax.report.table import final_table, headline_lines

__all__ = ["final_table", "headline_lines"]
