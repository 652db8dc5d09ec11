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


def test_intervals_stand_in_the_cells_of_their_values() -> None:
    results = {
        "trained": {"a/eer": 3.14159, "a/mindcf": 0.5, "b/eer": 20.0},
        "mfcc": {"a/eer": 30.0, "a/mindcf": 1.0},
    }
    bars = {
        "trained": {"a/eer": (2.0, 14.289), "a/mindcf": (0.12345, 0.9)},
        "mfcc": {"a/eer": (25.0, 35.0)},
    }
    assert format_table(results, bars).splitlines() == [
        "evaluation  system                EER (%)                   minDCF",
        "----------  -------  --------------------  -----------------------",
        "a           trained    3.14 [2.00, 14.29]  0.5000 [0.1235, 0.9000]",
        "a           mfcc     30.00 [25.00, 35.00]                   1.0000",
        "b           trained                 20.00                        -",
    ]


def test_classes_have_a_table_of_their_own() -> None:
    results = {
        "trained": {
            "knn/words/accuracy": 0.5,
            "sv_cosine/vox/eer": 3.0,
            "knn/words/f1_score": 0.25,
            "knn/words/f1_macro": 0.125,
            "sv_cosine/vox/eer_rocch": 2.5,
        },
        "mfcc": {"knn/words/accuracy": 0.0625},
    }
    bars = {"trained": {"sv_cosine/vox/eer_rocch": (2.0, 3.125)}}
    assert format_table(results, bars).splitlines() == [
        "evaluation     system   EER (%)  EER, ROC hull (%)",
        "-------------  -------  -------  -----------------",
        "sv_cosine/vox  trained     3.00  2.50 [2.00, 3.12]",
        "",
        "evaluation  system   accuracy  F1, weighted  F1, macro",
        "----------  -------  --------  ------------  ---------",
        "knn/words   trained    0.5000        0.2500     0.1250",
        "knn/words   mfcc       0.0625             -          -",
    ]


def test_nothing_measured_is_no_table() -> None:
    assert format_table({"trained": {}}) == ""
