"""What a run says and leaves behind: commands, records, the timeline, ledgers, the run folder.

    person --> command --> commands ledger --> rank 0 --> effects ledger --> every rank
    rank 0 --> record  --> timeline file   --> kernel (tail) --> Timeline --> tables, figures

Begin at commands.py and records.py, which say what there is, then timeline.py. Imports base alone.
"""
