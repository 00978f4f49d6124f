use super::*;

const CORES: [Core; 2] = [
    Core {
        index: CoreIndex(0),
        lcore: 2,
    },
    Core {
        index: CoreIndex(1),
        lcore: 3,
    },
];

fn plan(words: &str, bdevs: &[&str]) -> anyhow::Result<Vec<JobSpec>> {
    let cli = Cli::parse_words(words)?;
    let bdevs: Vec<String> = bdevs.iter().map(ToString::to_string).collect();
    from_options(&cli, &bdevs, &CORES, 1)
}

#[test]
fn bdevs_are_dealt_out_to_the_cores() {
    let specs = plan("-q 4 -o 4k -w randread", &["a", "b", "c"]).unwrap();
    let dealt: Vec<_> = specs.iter().map(|spec| (&*spec.bdev, spec.lcore)).collect();
    assert_eq!(dealt, [("a", 2), ("b", 3), ("c", 2)]);
    assert!(
        specs
            .iter()
            .all(|spec| spec.share == Share::WHOLE && !spec.verify)
    );
}

#[test]
fn with_every_core_each_has_its_share_and_its_own_data() {
    let specs = plan("-q 4 -o 4k -w verify -C", &["a"]).unwrap();
    let shares: Vec<_> = specs
        .iter()
        .map(|spec| (spec.share.index, spec.share.count))
        .collect();
    assert_eq!(shares, [(0, 2), (1, 2)]);
    assert_ne!(specs[0].seed, specs[1].seed);
    assert!(specs[0].verify);
}

#[test]
fn what_is_missing_is_named() {
    let error = |words: &str, bdevs: &[&str]| plan(words, bdevs).unwrap_err().to_string();
    assert!(error("-q 1 -o 4k -w read", &[]).contains("--attach"));
    assert!(error("-o 4k -w read", &["a"]).contains("-q"));
    assert!(error("-q 1 -w read", &["a"]).contains("-o"));
    assert!(error("-q 1 -o 4k", &["a"]).contains("-w"));
    assert!(error("-q 0 -o 4k -w read", &["a"]).contains("65536"));
    assert!(error("-q 1 -o 4k -w read -M 3", &["a"]).contains("-M"));
}

#[test]
fn letters_for_random_workloads_are_refused_for_others() {
    let error = |words: &str| plan(words, &["a"]).unwrap_err().to_string();
    assert!(error("-q 1 -o 4k -w read -D").contains("-D"));
    assert!(error("-q 1 -o 4k -w write -F 1.1").contains("-F"));
    let order = |words: &str| plan(words, &["a"]).unwrap()[0].order;
    assert_eq!(order("-q 1 -o 4k -w randread -D"), Order::EachOnce);
    assert_eq!(order("-q 1 -o 4k -w randrw -F 0.9"), Order::Zipf(0.9));
    assert_eq!(order("-q 1 -o 4k -w randrw"), Order::Uniform);
}

#[test]
fn a_job_runs_on_all_its_devices_and_cores() {
    let cli = Cli::parse_words("-q 7 -j jobs").unwrap();
    let text = "[x]\nfilename=a:b\nbs=8k\nrw=rw\n[y]\nfilename=b\nbs=4k\nrw=read\ncpumask=[3]\n";
    let specs = from_file(&cli, text, &CORES, 1).unwrap();
    let jobs: Vec<_> = specs
        .iter()
        .map(|s| (&*s.bdev, s.lcore, s.depth, s.io_bytes, s.share.count))
        .collect();
    assert_eq!(
        jobs,
        [
            ("a", 2, 7, 8192, 2),
            ("a", 3, 7, 8192, 2),
            ("b", 2, 7, 8192, 2),
            ("b", 3, 7, 8192, 2),
            ("b", 3, 7, 4096, 1),
        ]
    );
}

#[test]
fn what_a_job_file_lacks_is_named() {
    let cli = Cli::parse_words("-q 7 -j jobs").unwrap();
    let error = |text: &str| {
        let error = from_file(&cli, text, &CORES, 1).unwrap_err();
        format!("{error:#}")
    };
    let job = "[x]\nfilename=a\nbs=8k\n";
    assert_eq!(error("[x]\nbs=8k\nrw=rw\n"), "job x has no filename");
    assert_eq!(error(job), "job x: -w WORKLOAD is missing");
    let absent = format!("{job}rw=rw\ncpumask=0x100\n");
    assert_eq!(error(&absent), "job x: core 8 is not in -m");
}
