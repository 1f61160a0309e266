"""What a person looks at: a page of tables and figures, made from the files of runs.

`python -m cyclip_jax.report` makes it, and so does `cyclip_jax.report.write.write_report`, which
imports matplotlib.
"""
