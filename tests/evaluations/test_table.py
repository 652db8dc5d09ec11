"""Metrics as a table, letter by letter."""

from sslsv.evaluations.table import format_table


def test_one_row_for_each_list_and_system() -> None:
    results = {
        "trained": {
            "sv_cosine/vox1_O/eer": 3.14159,
            "sv_cosine/vox1_O/mindcf": 0.27182,
            "sv_cosine/demo/eer": 10.0,
        },
        "mfcc": {"sv_cosine/vox1_O/eer": 29.996, "sv_cosine/vox1_O/mindcf": 1.0},
    }
    assert format_table(results).splitlines() == [
        "evaluation        system   EER (%)  minDCF",
        "----------------  -------  -------  ------",
        "sv_cosine/demo    trained    10.00       -",
        "sv_cosine/vox1_O  trained     3.14  0.2718",
        "sv_cosine/vox1_O  mfcc       30.00  1.0000",
    ]


def test_every_metric_has_a_title_or_its_own_name() -> None:
    values = {"a/actdcf": 0.5, "a/cllr": 0.25, "a/avgrprec": 0.125, "a/accuracy": 1.0}
    assert format_table({"trained": values}).splitlines() == [
        "evaluation  system   actDCF    Cllr  AvgRPrec  accuracy",
        "----------  -------  ------  ------  --------  --------",
        "a           trained  0.5000  0.2500    0.1250    1.0000",
    ]
