//! Results as bdevperf prints them, and as JSON.

use std::io::{self, Write};
use std::path::Path;

use serde_json::{Map, Value, json};

use crate::job::{JobResult, Status};
use crate::tally::Tally;

const BYTES_PER_MIB: f64 = 1_048_576.0;
const RULE_WIDTH: usize = 115;
const SUMMARY_PERCENTS: [f64; 15] = [
    1.0, 10.0, 25.0, 50.0, 75.0, 90.0, 95.0, 98.0, 99.0, 99.5, 99.9, 99.99, 99.999, 99.9999,
    99.99999,
];
const TABLE_PERCENTS: [(f64, &str); 4] = [
    (50.0, "p50"),
    (99.0, "p99"),
    (99.9, "p99.9"),
    (99.99, "p99.99"),
];
/// Lines of a histogram.
const HISTOGRAM_STEPS_PER_DOUBLING: u32 = 2;

/// How much of the latencies to print.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum LatencyDetail {
    Table,
    Summary,
    Histogram,
}

impl LatencyDetail {
    /// From how often `-l` was given.
    pub(crate) fn from_count(count: u8) -> Self {
        match count {
            0 => Self::Table,
            1 => Self::Summary,
            _ => Self::Histogram,
        }
    }
}

/// Figures that are rates: they need the time.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Rates {
    iops: f64,
    mibps: f64,
    failed: f64,
    timed_out: f64,
}

impl Rates {
    fn of(result: &JobResult) -> Self {
        let seconds = seconds(result);
        if seconds == 0.0 {
            return Self::default();
        }
        let tally = &result.tally;
        Self {
            iops: tally.ios() as f64 / seconds,
            mibps: tally.bytes as f64 / BYTES_PER_MIB / seconds,
            failed: tally.failed as f64 / seconds,
            timed_out: tally.timed_out as f64 / seconds,
        }
    }

    fn add(&mut self, other: Self) {
        self.iops += other.iops;
        self.mibps += other.mibps;
        self.failed += other.failed;
        self.timed_out += other.timed_out;
    }
}

fn seconds(result: &JobResult) -> f64 {
    result.runtime.as_duration().as_secs_f64()
}

/// Prints everything that people read.
pub(crate) fn print(
    results: &[JobResult],
    detail: LatencyDetail,
    out: &mut impl Write,
) -> io::Result<()> {
    print_table(results, out)?;
    print_percentiles(results, out)?;
    for result in results {
        if detail >= LatencyDetail::Summary {
            print_summary(result, out)?;
        }
        if detail == LatencyDetail::Histogram {
            print_histogram(result, out)?;
        }
    }
    results
        .iter()
        .try_for_each(|result| print_findings(result, out))
}

fn print_table(results: &[JobResult], out: &mut impl Write) -> io::Result<()> {
    writeln!(out, "\n{:>107}", "Latency(us)")?;
    writeln!(
        out,
        " {:<28}: {:>10} {:>10} {:>10} {:>10} {:>8} {:>10} {:>10} {:>10}",
        "Device Information",
        "runtime(s)",
        "IOPS",
        "MiB/s",
        "Fail/s",
        "TO/s",
        "Average",
        "min",
        "max"
    )?;
    let (mut total, mut tally) = (Rates::default(), Tally::new());
    for result in results {
        print_job(result, out)?;
        total.add(Rates::of(result));
        tally.add(&result.tally);
    }
    writeln!(out, " {}", "=".repeat(RULE_WIDTH))?;
    write!(out, " {:<28}: {:>10}", "Total", "")?;
    print_figures(total, &tally, out)
}

fn print_job(result: &JobResult, out: &mut impl Write) -> io::Result<()> {
    let spec = &result.spec;
    write!(
        out,
        " Job: {} (Core Mask {}, workload: {}, ",
        spec.bdev,
        core_mask(result),
        spec.workload.name()
    )?;
    if spec.workload.is_mixed() {
        write!(out, "percentage: {}, ", spec.read_percent)?;
    }
    writeln!(out, "depth: {}, IO size: {})", spec.depth, spec.io_bytes)?;
    if result.status != Status::Finished {
        let share = seconds(result);
        let verb = status_name(result.status);
        writeln!(
            out,
            " Job: {} ended in about {share:.2} seconds with status {verb}",
            spec.bdev
        )?;
    }
    if spec.verify {
        let (start, length) = verify_range(result);
        writeln!(
            out,
            "\t Verification LBA range: start {start:#x} length {length:#x}"
        )?;
    }
    write!(out, "\t {:<20}: {:>10.2}", spec.bdev, seconds(result))?;
    print_figures(Rates::of(result), &result.tally, out)
}

fn print_figures(rates: Rates, tally: &Tally, out: &mut impl Write) -> io::Result<()> {
    writeln!(
        out,
        " {:>10.2} {:>10.2} {:>10.2} {:>8.2} {:>10.2} {:>10.2} {:>10.2}",
        rates.iops,
        rates.mibps,
        rates.failed,
        rates.timed_out,
        tally.average_us(),
        tally.min_us(),
        tally.max_us()
    )
}

fn print_percentiles(results: &[JobResult], out: &mut impl Write) -> io::Result<()> {
    write!(out, "\n {:<28}:", "Latency percentiles(us)")?;
    for (_, name) in TABLE_PERCENTS {
        write!(out, " {name:>10}")?;
    }
    writeln!(out)?;
    for result in results {
        write!(out, "\t {:<20}:", result.spec.bdev)?;
        for (percent, _) in TABLE_PERCENTS {
            write!(out, " {:>10.2}", result.tally.percentile_us(percent))?;
        }
        writeln!(out)?;
    }
    Ok(())
}

fn print_summary(result: &JobResult, out: &mut impl Write) -> io::Result<()> {
    print_heading("Latency summary", result, out)?;
    for percent in SUMMARY_PERCENTS {
        writeln!(
            out,
            "{percent:9.5}% : {:9.3}us",
            result.tally.percentile_us(percent)
        )?;
    }
    writeln!(out)
}

fn print_histogram(result: &JobResult, out: &mut impl Write) -> io::Result<()> {
    print_heading("Latency histogram", result, out)?;
    writeln!(out, "       Range in us     Cumulative    IO count")?;
    let histogram = &result.tally.latency;
    let base = 2_f64.powf(1.0 / f64::from(HISTOGRAM_STEPS_PER_DOUBLING));
    let (mut so_far, mut from_us) = (0, 0.0);
    for bucket in histogram.iter_log(100, base) {
        let to_us = bucket.value_iterated_to() as f64 / 1e3;
        let count = bucket.count_since_last_iteration();
        so_far += count;
        if count > 0 {
            let share = 100.0 * so_far as f64 / histogram.len() as f64;
            writeln!(
                out,
                "{from_us:9.3} - {to_us:9.3}: {share:9.4}%  ({count:9})"
            )?;
        }
        from_us = to_us;
    }
    writeln!(out)
}

fn print_heading(what: &str, result: &JobResult, out: &mut impl Write) -> io::Result<()> {
    writeln!(
        out,
        "\n{what} for {:<43} from core {}:",
        result.spec.bdev, result.spec.lcore
    )?;
    writeln!(out, "{}", "=".repeat(85))
}

/// What is not a figure: errors, and what verification found.
fn print_findings(result: &JobResult, out: &mut impl Write) -> io::Result<()> {
    let bdev = &result.spec.bdev;
    for (errno, count) in result.tally.errors() {
        writeln!(out, "{bdev}: {count} I/Os failed: {errno}")?;
    }
    for mismatch in &result.mismatches {
        writeln!(out, "{bdev}: WRONG DATA: {mismatch}")?;
    }
    if !result.spec.verify {
        return Ok(());
    }
    writeln!(
        out,
        "{bdev}: {} blocks verified, {} I/Os with wrong data",
        result.verified_blocks, result.mismatch_count
    )
}

/// What `perform_tests` returns, with more about each job after what bdevperf says.
pub(crate) fn to_json(results: &[JobResult]) -> Value {
    let mut cores: Vec<u32> = results.iter().map(|result| result.spec.lcore).collect();
    cores.sort_unstable();
    cores.dedup();
    let jobs: Vec<Value> = results.iter().map(job_to_json).collect();
    json!({"results": jobs, "core_count": cores.len()})
}

fn job_to_json(result: &JobResult) -> Value {
    let (spec, tally, rates) = (&result.spec, &result.tally, Rates::of(result));
    let mut job = Map::new();
    let mut put = |name: &str, value: Value| job.insert(name.to_owned(), value);
    put("job", json!(spec.bdev));
    put("core_mask", json!(core_mask(result)));
    put("workload", json!(spec.workload.name()));
    if spec.workload.is_mixed() {
        put("percentage", json!(spec.read_percent));
    }
    put("status", json!(status_name(result.status)));
    if spec.verify {
        let (start, length) = verify_range(result);
        put("verify_range", json!({"start": start, "length": length}));
    }
    put("queue_depth", json!(spec.depth));
    put("io_size", json!(spec.io_bytes));
    put("runtime", json!(seconds(result)));
    put("iops", json!(rates.iops));
    put("mibps", json!(rates.mibps));
    put("io_failed", json!(tally.failed));
    put("io_timeout", json!(tally.timed_out));
    put("avg_latency_us", json!(tally.average_us()));
    put("min_latency_us", json!(tally.min_us()));
    put("max_latency_us", json!(tally.max_us()));
    put("latency_percentiles_us", percentiles_to_json(tally));
    put(
        "io_done",
        json!({"read": tally.reads, "write": tally.writes, "other": tally.others}),
    );
    put("errors", errors_to_json(tally));
    if spec.verify {
        put("verify", verification_to_json(result));
    }
    Value::Object(job)
}

fn percentiles_to_json(tally: &Tally) -> Value {
    let pairs = SUMMARY_PERCENTS.map(|percent| {
        let value = json!(tally.percentile_us(percent));
        (percent.to_string(), value)
    });
    Value::Object(pairs.into_iter().collect())
}

fn errors_to_json(tally: &Tally) -> Value {
    let name = |errno: rnbd_base::Errno| {
        let number = || errno.get().to_string();
        errno.symbol().map_or_else(number, ToOwned::to_owned)
    };
    let pairs = tally
        .errors()
        .iter()
        .map(|(errno, count)| (name(*errno), json!(count)));
    Value::Object(pairs.collect())
}

fn verification_to_json(result: &JobResult) -> Value {
    let texts: Vec<String> = result.mismatches.iter().map(ToString::to_string).collect();
    json!({
        "verified_blocks": result.verified_blocks,
        "mismatch_count": result.mismatch_count,
        "mismatches": texts,
    })
}

fn core_mask(result: &JobResult) -> String {
    let (word, bit) = (result.spec.lcore / 4, result.spec.lcore % 4);
    format!("0x{:x}{}", 1 << bit, "0".repeat(word as usize))
}

fn status_name(status: Status) -> &'static str {
    match status {
        Status::Finished => "finished",
        Status::Failed => "failed",
        Status::Terminated => "terminated",
    }
}

/// In blocks.
fn verify_range(result: &JobResult) -> (u64, u64) {
    let range = &result.range;
    (range.first_block, range.units * range.blocks_per_unit)
}

/// Writes the percentile distribution of each job to a file of its own in `directory`, in
/// microseconds, as HdrHistogram's plotter reads it.
pub(crate) fn write_hgrm(results: &[JobResult], directory: &Path) -> io::Result<()> {
    std::fs::create_dir_all(directory)?;
    for (index, result) in results.iter().enumerate() {
        let bdev = result.spec.bdev.replace('/', "_");
        let name = format!("{index}-{bdev}-{}.hgrm", result.spec.workload.name());
        let mut file = io::BufWriter::new(std::fs::File::create(directory.join(name))?);
        write_distribution(&result.tally, &mut file)?;
        file.flush()?;
    }
    Ok(())
}

fn write_distribution(tally: &Tally, out: &mut impl Write) -> io::Result<()> {
    let histogram = &tally.latency;
    writeln!(
        out,
        "{:>12} {:>14} {:>10} {:>14}\n",
        "Value", "Percentile", "TotalCount", "1/(1-Percentile)"
    )?;
    let mut so_far = 0;
    for step in histogram.iter_quantiles(5) {
        so_far += step.count_since_last_iteration();
        let value = step.value_iterated_to() as f64 / 1e3;
        let quantile = step.quantile_iterated_to();
        write!(out, "{value:12.3} {quantile:2.12} {so_far:10}")?;
        if quantile < 1.0 {
            write!(out, " {:14.2}", 1.0 / (1.0 - quantile))?;
        }
        writeln!(out)?;
    }
    let (mean, deviation) = (histogram.mean() / 1e3, histogram.stdev() / 1e3);
    writeln!(
        out,
        "#[Mean    = {mean:12.3}, StdDeviation   = {deviation:12.3}]"
    )?;
    let (max, count) = (tally.max_us(), histogram.len());
    writeln!(out, "#[Max     = {max:12.3}, Total count    = {count:12}]")
}

#[cfg(test)]
mod tests;
