"""The report of a comparison: one self-contained HTML file.

    page           gathers the content of the page and renders it
    first_screen   its first screen: a row of samples for each run
    gallery        rows of samples, cut out of the grids of evaluations
    poster         the first screen as a PNG
    panels         the measurements as dot plots
    summary        the verdict: sentences at the top of the page
    table          the table that the command line prints, and `best:METRIC`
    dots           SVG dot plots
    charts         SVG line charts
    loss_curves    charts of training losses, and warnings about them
    reproduce      the commands that reproduce the runs, and the settings that differ
    html           Jinja environment, and pictures as data URIs
"""
