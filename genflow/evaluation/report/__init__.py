"""The report of a comparison: one self-contained HTML file.

    page           gathers the content of the page and renders it
    summary        the verdict: sentences at the top of the page
    table          the table that the command line prints, and `best:METRIC`
    charts         SVG charts
    loss_curves    charts of training losses, and warnings about them
    reproduce      the commands that reproduce the runs, and the settings that differ
    html           Jinja environment, and pictures as data URIs
"""
