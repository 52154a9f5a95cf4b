"""From stores to tables: ``observations`` → groupby and merge with published numbers → tables → writers.

observations        the DataFrames of runs and values that suites have in stores; ``keys`` names what they are about,
                    and holds the published numbers under the same names
cells               mean ± sd, difference and verdict of each cell
tables              grid tables and tables of measurements; ``paper_tables`` those of the papers, with ``captions`` for all
statistics          paired tests over trials (``paired_tests``), and ``statistics_tables``
report              all of these, for one report; ``comparison`` sets two folders side by side and finds conflicts
rendered            a table as text, which every format reads
writers             terminal, Markdown and LaTeX; ``csv_json``, and ``html`` with page/
options             what a report can show and how
"""
