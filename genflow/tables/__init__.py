"""The two tables that the field quotes from memory, as measurements with error bars (`genflow tables`).

    plan         pipelines/tables.yaml: what is trained, measured, and claimed; what it costs
    quantities   evaluations of several seeds -> numbers with intervals, one set a method
    claims       what textbooks say, as data, and the verdict of the measurements
    cells        numbers -> the words in the tables' cells; as text and as Markdown
    page         the report, one HTML file
"""
