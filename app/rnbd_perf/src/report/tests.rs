use rnbd_base::{Errno, Nanos};

use super::*;
use crate::ledger::{Fault, Mismatch};
use crate::spec::{JobSpec, Range};
use crate::workload::{Action, Workload};

fn result(workload: Workload) -> JobResult {
    let mut tally = Tally::new();
    for latency_us in 1..=1000 {
        tally.succeeded(Action::Read, 4096, Nanos::from_micros(latency_us));
    }
    JobResult {
        spec: JobSpec {
            lcore: 5,
            ..JobSpec::example("Malloc0", workload)
        },
        range: Range {
            first_block: 16,
            block_bytes: 512,
            blocks_per_unit: 8,
            units: 100,
        },
        status: Status::Finished,
        runtime: Nanos::from_secs(2),
        tally,
        verified_blocks: 800,
        mismatch_count: 0,
        mismatches: Vec::new(),
    }
}

fn text(results: &[JobResult], detail: LatencyDetail) -> String {
    let mut out = Vec::new();
    print(results, detail, &mut out).unwrap();
    String::from_utf8(out).unwrap()
}

#[test]
fn the_table_has_the_columns_that_scripts_know() {
    let printed = text(&[result(Workload::RandRead)], LatencyDetail::Table);
    let lines: Vec<&str> = printed.lines().collect();
    assert!(lines[1].ends_with("Latency(us)"));
    assert_eq!(
        lines[2],
        " Device Information          : runtime(s)       IOPS      MiB/s     Fail/s     TO/s    \
         Average        min        max"
    );
    assert_eq!(
        lines[3],
        " Job: Malloc0 (Core Mask 0x20, workload: randread, depth: 8, IO size: 4096)"
    );
    let row: Vec<&str> = lines[4].split_whitespace().collect();
    assert_eq!(
        row,
        [
            "Malloc0", ":", "2.00", "500.00", "1.95", "0.00", "0.00", "500.50", "1.00", "1000.00"
        ]
    );
    assert!(lines[5].starts_with(" ====="));
    assert!(lines[6].starts_with(" Total "));
}

#[test]
fn the_total_adds_rates_and_takes_the_extremes() {
    let printed = text(
        &[result(Workload::Read), result(Workload::Read)],
        LatencyDetail::Table,
    );
    let total = printed
        .lines()
        .find(|line| line.starts_with(" Total"))
        .unwrap();
    let figures: Vec<&str> = total.split_whitespace().collect();
    assert_eq!(
        figures[2..],
        [
            "1000.00", "3.91", "0.00", "0.00", "500.50", "1.00", "1000.00"
        ]
    );
}

#[test]
fn a_summary_and_a_histogram_are_printed_when_asked_for() {
    let one = [result(Workload::Read)];
    let summary = text(&one, LatencyDetail::Summary);
    assert!(summary.contains(" 50.00000% :   500.2"), "{summary}");
    assert!(!summary.contains("Cumulative"));
    let histogram = text(&one, LatencyDetail::Histogram);
    assert!(histogram.contains("100.0000%"), "{histogram}");
}

#[test]
fn errors_and_wrong_data_are_named() {
    let mut bad = result(Workload::Verify);
    bad.status = Status::Failed;
    bad.tally.failed(Errno::NOSPC);
    bad.mismatch_count = 1;
    bad.mismatches.push(Mismatch {
        lba: 77,
        fault: Fault::Zeroes,
        oldest_expected: 3,
        newest_expected: 3,
        written_at: Nanos(1),
        read_submitted_at: Nanos(2),
        read_answered_at: Nanos(3),
        wrong_blocks: 1,
        blocks: 8,
    });
    let printed = text(&[bad], LatencyDetail::Table);
    for expected in [
        "1 I/Os failed: No space left on device (ENOSPC)",
        "WRONG DATA: block 77: lost write, it holds zeroes; expected generation 3",
        "800 blocks verified, 1 I/Os with wrong data",
        "Verification LBA range: start 0x10 length 0x320",
        "with status failed",
    ] {
        assert!(
            printed.contains(expected),
            "{expected:?} is not in\n{printed}"
        );
    }
}

#[test]
fn json_has_what_perform_tests_returns() {
    let mut one = result(Workload::RandRw);
    one.tally.failed(Errno::IO);
    let json = to_json(&[one]);
    assert_eq!(json["core_count"], 1);
    let job = &json["results"][0];
    let names: Vec<&str> = job
        .as_object()
        .unwrap()
        .keys()
        .map(String::as_str)
        .collect();
    let expected = "job core_mask workload percentage status queue_depth io_size runtime iops \
                    mibps io_failed io_timeout avg_latency_us min_latency_us max_latency_us";
    let expected: Vec<&str> = expected.split_whitespace().collect();
    assert_eq!(names[..expected.len()], expected);
    assert_eq!(job["iops"], 500.0);
    assert_eq!(job["errors"]["EIO"], 1);
    assert!(job["latency_percentiles_us"]["99.9"].as_f64().unwrap() > 990.0);
}

#[test]
fn distributions_are_written_one_file_a_job() {
    let directory = tempfile::tempdir().unwrap();
    let two = [result(Workload::Read), result(Workload::Write)];
    write_hgrm(&two, &directory.path().join("new")).unwrap();
    let text = std::fs::read_to_string(directory.path().join("new/1-Malloc0-write.hgrm")).unwrap();
    assert!(text.contains("1/(1-Percentile)"));
    assert!(text.contains("Total count    =         1000]"), "{text}");
}

#[test]
fn masks_of_high_cores_are_written_out() {
    let mut one = result(Workload::Read);
    one.spec.lcore = 70;
    assert_eq!(core_mask(&one), format!("0x4{}", "0".repeat(17)));
}
