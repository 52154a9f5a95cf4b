"""From what the store holds to tables.

rows            one per run of a suite, as far as it is; ``keys`` spells what it is about, ``folders`` tells where several
                results folders disagree
facts           one per value; those of measurements come from ``measurements``
tables          of a suite: methods against pairs, from rows; of measurements: ``measurement_tables``; of the papers:
                ``layouts`` and ``published`` are what is printed, ``printed`` fills it; ``cells`` and ``marks`` for all
statistics      from rows by way of ``samples``; tests are in ``paired`` and ``ranks``, tables in ``statistics_sheets``
assemble        all of these, for one report; ``comparison`` sets two folders side by side
sheet           what a table is to a format, with its ``captions``
formats         which there are: ``terminal``, ``markdown``, ``latex``, ``tidy`` (CSV and JSON), and ``html`` with
                ``page_data``, ``curves``, ``provenance`` and page/
"""
