"""Two tables that compare families of generative models, measured with error bars (`genflow tables`).

    plan         pipelines/tables.yaml: what is trained, measured and claimed
    quantities   evaluations of several seeds -> one set of numbers with intervals per method
    claims       claims of textbooks as data, and the verdict of the measurements on each
    document     the `genflow.tables/1` JSON document, from which everything else is rendered
    formatting   numbers -> text of the cells; the tables as text and as Markdown
    summary      the verdict and the description of the measurement, as sentences
    panels       the columns of the tables, and the claims, as dot plots
    page         the report, one self-contained HTML file
"""
