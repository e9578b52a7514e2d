"""The comparison's report: one HTML file that needs no other file.

    page           the page as a whole
    summary        the sentences at its top
    table          the table, which the terminal shows too
    charts         SVG charts
    loss_curves    training losses and warnings about them
    reproduce      the commands that make the runs again
    html           templates and embedded pictures
"""
