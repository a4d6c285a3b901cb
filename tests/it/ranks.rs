//! `ranks` on `train`: several processes under MPI make what as many devices of one process make, and
//! losing, stopping or abandoning them loses nothing and leaves nobody behind.

use std::time::Instant;

use super::place::{Place, processes, until};
use super::slurm::Cluster;
use super::steps::{Allocation, within};

const DATA: &str = r#"
[stages.rows]
kind = "synthesize"
seed = 1
tasks = ["copy", "reverse"]
rows = 203
heldout = 11

[stages.init]
kind = "init"
inputs = { corpus = ["rows"] }
template = "plain"
seed = 7
hidden_size = 32
intermediate_size = 64
layers = 2
heads = 2
kv_heads = 2

[stages.tokens]
kind = "tokenize"
inputs = { dataset = "rows", tokenizer = "init" }
template = "plain"
mask_prompt = true
cutoff = 64

[stages.train]
kind = "train"
inputs = { model = "init", data = "tokens" }
method = "dora"
rank = 4
lr = 0.01
device = "cpu"
"#;

/// 40 rows a step: the last step of each of the two epochs has 3, so that a rank is left without any.
const SHORT: &str = "epochs = 2.0\naccumulation = 2\neval_every = 4\ngenerate_every = 6\nsave_every = 5\n";

/// Long enough to be interrupted.
const LONG: &str = "max_steps = 1000\nbatch_size = 4\ncheckpoint_every = 10\n";

/// One rank on each of two nodes.
const NODES: &str = "[stages.train.resources]\nnodes = 2\ncpus = 1\n";

fn place(settings: &str) -> Place {
    Place::new(&format!("{DATA}{settings}"))
}

/// The processes of a rank, or of all, that work for `place`.
fn ranks(place: &Place, rank: Option<usize>) -> Vec<u32> {
    let name = place.path("").display().to_string();
    let here = processes("--rank").into_iter().filter(|pid| {
        let read = |what: &str| std::fs::read(format!("/proc/{pid}/{what}")).unwrap_or_default();
        let number = rank.map_or("PMIX_RANK=".to_owned(), |rank| format!("PMIX_RANK={rank}\0"));
        let holds = |what: &str, part: &str| String::from_utf8_lossy(&read(what)).contains(part);
        holds("cmdline", name.trim_end_matches('/')) && holds("environ", &number)
    });
    here.collect()
}

/// Steps that the training in `place` has in its work folder.
fn steps(place: &Place) -> usize {
    let folders = std::fs::read_dir(place.path(".pipe/work")).into_iter().flatten().flatten();
    let texts = folders.filter_map(|folder| std::fs::read(folder.path().join("metrics.jsonl")).ok());
    texts.map(|text| text.iter().filter(|&&byte| byte == b'\n').count()).max().unwrap_or(0)
}

fn losses(place: &Place) -> Vec<f64> {
    let (_, text) =
        place.output("train").into_iter().find(|(name, _)| name.ends_with("metrics.jsonl")).unwrap();
    let lines = String::from_utf8(text).unwrap();
    lines
        .lines()
        .map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap()["loss"].as_f64().unwrap())
        .collect()
}

/// That both have made the same bytes.
fn same(a: &Place, b: &Place) {
    let (a, b) = (a.output("train"), b.output("train"));
    assert_eq!(a.len(), b.len());
    for (a, b) in a.into_iter().zip(b) {
        assert!(a == b, "{} and {} differ", a.0.display(), b.0.display());
    }
}

#[test]
fn ranks_make_the_bytes_of_as_many_devices_and_the_figures_of_the_larger_batch() {
    for (ranks, devices, batch) in [(2, 1, 10), (4, 1, 5), (2, 2, 5)] {
        let together = place(&format!("{SHORT}ranks = {ranks}\ndevices = {devices}\nbatch_size = {batch}\n"));
        together.run();
        together.pipe("logs p.toml train").ends(0).says(&["rank 0 on ", "rank 1 on "]);
        let (other_ranks, other_devices) = if devices == 1 { (1, ranks) } else { (ranks, devices) };
        let other =
            format!("{SHORT}ranks = {other_ranks}\ndevices = {other_devices}\nbatch_size = {batch}\n");
        let other = place(&other);
        other.run();
        same(&together, &other);
        let large = place(&format!("{SHORT}batch_size = {}\n", batch * ranks * devices));
        large.run();
        for (step, (a, b)) in losses(&together).into_iter().zip(losses(&large)).enumerate() {
            assert!((a - b).abs() < 2e-4, "step {}: {a} is not {b}", step + 1);
        }
    }
}

/// Under mpirun: moments and update shared out change no byte, whoever shares them.
#[test]
fn a_shared_out_optimizer_makes_the_bytes_of_one_whatever_it_is_shared_over() {
    let more = "weight_decay = 0.01\nloraplus_ratio = 4.0\nsave_state = true\n";
    let with = |ranks: usize, devices: usize, zero: u8| {
        let settings = format!(
            "{SHORT}{more}batch_size = {}\nranks = {ranks}\ndevices = {devices}\nzero = {zero}\n",
            20 / (ranks * devices)
        );
        let place = place(&settings);
        place.run();
        place
    };
    for (ranks, devices) in [(2, 1), (4, 1), (2, 2)] {
        let shared = with(ranks, devices, 1);
        if devices == 1 {
            same(&shared, &with(1, ranks, 1));
        }
        same(&shared, &with(ranks, devices, 0));
    }
}

/// The loss is scaled, steps whose gradient overflows are left out, and what two ranks have stored goes on
/// with three, with two devices, and in one place.
#[test]
fn a_shared_out_optimizer_in_16_bit_goes_on_elsewhere() {
    let text = format!(
        "{DATA}{SHORT}compute_dtype = \"float16\"\nbatch_size = 10\nsave_state = true\n\
         ranks = 2\nzero = 1\n"
    );
    let longer = |name: &str, more: &str| {
        let stage = "kind = \"train\"\ninputs = { model = \"init\", data = \"tokens\", resume = \"train\" }\n\
                     method = \"dora\"\nrank = 4\nlr = 0.01\ndevice = \"cpu\"\nbatch_size = 5\nmax_steps = 20\n\
                     compute_dtype = \"float16\"\n";
        format!("[stages.{name}]\n{stage}{more}")
    };
    let shared = longer("shared", "ranks = 4\nzero = 1\n");
    let place = Place::new(
        &[text, shared, longer("devices", "devices = 4\nzero = 1\n"), longer("host", "ranks = 4\n")].concat(),
    );
    place.run();
    let state = |stage: &str| place.output(stage);
    assert_eq!(state("shared"), state("devices"));
    assert_eq!(state("shared"), state("host"));
    let whole = self::place(&format!(
        "{SHORT}compute_dtype = \"float16\"\nbatch_size = 10\nsave_state = true\nranks = 2\n"
    ));
    whole.run();
    same(&place, &whole);
}

#[test]
fn a_lost_rank_stops_all_and_the_next_run_goes_on_from_the_checkpoint() {
    let whole = place(&format!("{LONG}ranks = 2\n"));
    whole.run();
    for (lost, zero) in [(1, 0), (0, 0), (1, 1), (0, 1)] {
        let place = place(&format!("{LONG}ranks = 2\nzero = {zero}\n"));
        let run = place.pipe("run p.toml").start();
        until("some steps are made", || steps(&place) > 30);
        let [pid] = ranks(&place, Some(lost))[..] else { panic!("one process is rank {lost}") };
        let since = Instant::now();
        assert!(
            std::process::Command::new("kill").args(["-9", &pid.to_string()]).status().unwrap().success()
        );
        let (code, said) = run.wait();
        assert_eq!(code, Some(1), "{said:?}");
        said.says(&["a rank of 2 was lost", "last checkpoint"]);
        assert!(since.elapsed().as_secs() < 10, "it took {:?}", since.elapsed());
        assert_eq!(ranks(&place, None), Vec::<u32>::new());
        place.run();
        place.pipe("logs p.toml train").ends(0).says(&["goes on after step "]);
        same(&place, &whole);
    }
}

#[test]
fn a_request_to_stop_has_them_save_and_the_next_run_goes_on() {
    // No checkpoint but that of the stop.
    let settings = "max_steps = 2000\nbatch_size = 4\ncheckpoint_every = 2000\nranks = 2\n";
    let whole = place(settings);
    whole.run();
    for zero in ["", "zero = 1\n"] {
        let place = place(&format!("{settings}{zero}"));
        let run = place.pipe("run p.toml").start();
        until("some steps are made", || steps(&place) > 30);
        run.signal("INT");
        let (code, said) = run.wait();
        assert_eq!(code, Some(75), "{said:?}");
        assert_eq!(ranks(&place, None), Vec::<u32>::new());
        assert!(steps(&place) > 0);
        place.run();
        place.pipe("logs p.toml train").ends(0).says(&["goes on after step "]);
        same(&place, &whole);
    }
}

#[test]
fn ranks_do_not_outlive_the_run_that_started_them() {
    let place = place(&format!("{LONG}ranks = 2\n").replace("1000", "100000"));
    for killed in ["KILL", "INT"] {
        let run = place.pipe("run p.toml").start();
        let before = steps(&place);
        until("some steps are made", || steps(&place) > before + 20);
        let since = Instant::now();
        run.signal(killed);
        if killed == "INT" {
            run.signal(killed); // asked twice: at once
        }
        run.wait();
        until("all ranks are gone", || ranks(&place, None).is_empty());
        assert!(since.elapsed().as_secs() < 10, "it took {:?}", since.elapsed());
    }
}

#[test]
fn a_rank_that_fails_is_named_with_what_it_said() {
    let place = place(&format!("{SHORT}ranks = 2\nbatch_size = 10\n"));
    // Rank 1 gets a job of its own, with a device that nobody has.
    std::fs::create_dir(place.path("bin")).unwrap();
    let folder = place.path("").display().to_string();
    let mpirun = "#!/bin/sh\nshift 2\nexec /usr/bin/mpirun -n 2 HERE/rank \"$@\"\n";
    let rank = "#!/bin/sh\n[ $OMPI_COMM_WORLD_RANK = 0 ] && exec \"$@\"\n\
                sed 's/\"cpu\"/\"gpu:98\"/' \"$3\" > HERE/other.json\nexec \"$1\" \"$2\" HERE/other.json --rank\n";
    for (name, script) in [("bin/mpirun", mpirun), ("rank", rank)] {
        place.write(name, &script.replace("HERE", folder.trim_end_matches('/')));
        super::place::set_mode(&place.path(name), 0o755);
    }
    let path = format!("{}:{}", place.path("bin").display(), std::env::var("PATH").unwrap());
    let since = Instant::now();
    place.pipe("run p.toml").env("PATH", &path).ends(1).says(&["rank 1 on `", "adapter"]);
    assert!(since.elapsed().as_secs() < 15, "it took {:?}", since.elapsed());
    assert_eq!(ranks(&place, None), Vec::<u32>::new());
}

#[test]
fn two_nodes_of_a_cluster_make_the_same_bytes() {
    let Some(slurm) = Cluster::up() else { return };
    let settings = format!("{SHORT}ranks = 2\nbatch_size = 10\n{NODES}");
    let (there, here) = (place(&settings), place(&settings));
    slurm.run(&there).ends(0);
    assert!(slurm.ask("scontrol", &["show", "jobs"]).contains("NumNodes=2"));
    here.run();
    same(&there, &here);
    let said = there.pipe("show").ends(0);
    let told = said.out.split("\ntrain (ran ").nth(1).unwrap();
    let [rank_0, rank_1, all] =
        ["rank.0.peak memory: ", "rank.1.peak memory: ", "peak memory: "].map(|name| {
            let value = told.lines().find_map(|line| line.trim().strip_prefix(name)?.strip_suffix(" MB"));
            value.unwrap_or_else(|| panic!("{name} in {told}")).parse::<f64>().unwrap()
        });
    assert!(rank_0 > 20.0 && rank_1 > 20.0, "{rank_0} and {rank_1} MB");
    assert!(
        (all - rank_0.max(rank_1)).abs() < 0.06,
        "{all} MB is what the larger of {rank_0} and {rank_1} held"
    );
}

#[test]
fn on_a_cluster_ranks_whose_time_is_nearly_up_save_and_queue_again() {
    let Some(slurm) = Cluster::up() else { return };
    // No checkpoint but that of the signal.
    let settings =
        format!("max_steps = 2000\nbatch_size = 4\ncheckpoint_every = 2000\nranks = 2\nzero = 1\n{NODES}");
    let (there, here) = (place(&settings), place(&settings));
    let run = slurm.run(&there).start();
    until("some steps are made", || steps(&there) > 30);
    let jobs = slurm.jobs(&there);
    let (id, _) = jobs.iter().find(|(_, state)| state == "RUNNING").unwrap();
    // As Slurm does it two minutes before the limit.
    slurm.ask("scancel", &["--batch", "--signal=USR1", id]);
    let queued = |slurm: &Cluster| slurm.jobs(&there).iter().any(|(_, state)| state == "PENDING");
    until("it queues again", || queued(&slurm));
    until("its ranks are gone", || ranks(&there, None).is_empty());
    let before = steps(&there);
    assert!(before > 0 && before < 2000, "{before} steps");
    // Slurm lets such a job wait for two minutes, so that its first turn is over for sure.
    std::thread::sleep(std::time::Duration::from_secs(4));
    slurm.ask("scontrol", &["update", &format!("jobid={id}"), "starttime=now"]);
    let (code, said) = run.wait();
    assert_eq!(code, Some(0), "{said:?}");
    assert_eq!(slurm.jobs(&there).len(), jobs.len(), "the same job, twice begun");
    assert!(slurm.ask("scontrol", &["show", "job", id]).contains("Restarts=1"));
    there.pipe("logs p.toml train").ends(0).says(&["goes on after step ", "the job's time is nearly up"]);
    here.run();
    same(&there, &here);
}

#[test]
fn ranks_are_a_step_of_an_allocation_and_stop_when_they_are_asked() {
    let Some(allocation) = Allocation::of("--nodes=2 --ntasks=2") else { return };
    let settings = |ranks: usize| format!("{LONG}ranks = {ranks}\n{NODES}");
    let (there, here) = (place(&settings(2)), place(&settings(2)));
    let run = allocation.run(&there).start();
    until("some steps are made", || steps(&there) > 30);
    run.signal("INT");
    let (code, said) = run.wait();
    assert_eq!(code, Some(75), "{said:?}");
    assert_eq!((ranks(&there, None), allocation.steps()), (Vec::new(), Vec::new()));
    allocation.run(&there).ends(0);
    there.pipe("logs p.toml train").ends(0).says(&["goes on after step "]);
    there.pipe("show").ends(0).says(&["slurm step", "rank.1.peak memory"]);
    assert!(allocation.slurm.jobs(&there).is_empty(), "no jobs of their own");
    here.run();
    same(&there, &here);
    let place = place(&settings(4));
    let job = format!("job {}: n", allocation.job);
    allocation.run(&place).ends(1).says(&["0 of 2 machines of the allocation have the 2 cpus", &job]);
}

#[test]
fn a_step_of_ranks_whose_srun_was_killed_too_keeps_others_out_of_its_folder() {
    let Some(allocation) = Allocation::of("--nodes=2 --ntasks=2") else { return };
    let place = place(&format!("{LONG}ranks = 2\n{NODES}").replace("1000", "100000"));
    let run = allocation.run(&place).start();
    until("some steps are made", || steps(&place) > 30);
    let mut pids = within(&place, "srun");
    assert!(!pids.is_empty());
    let all = ranks(&place, None);
    pids.extend(within(&place, "pipe").into_iter().filter(|pid| !all.contains(&pid.parse().unwrap())));
    let _ = std::process::Command::new("kill").arg("-KILL").args(&pids).status();
    run.wait();
    assert!(!ranks(&place, None).is_empty(), "they have nobody who ends them");
    let next = place.pipe("run p.toml").start();
    std::thread::sleep(std::time::Duration::from_secs(2));
    assert_eq!(ranks(&place, None).len(), 2, "and nobody comes near them");
    allocation.end_steps();
    until("the next run goes on", || {
        place.pipe("logs p.toml train").start().wait().1.out.contains("goes on after step ")
    });
    next.signal("KILL");
    let (_, said) = next.wait();
    said.says(&[&format!("in job {} of Slurm", allocation.job)]);
}

/// Rank 1's adapter is the only one there is: the second of one is the first.
#[test]
fn ranks_on_software_vulkan_make_the_bytes_of_as_many_devices() {
    let with = |settings: &str| {
        let settings = format!("max_steps = 3\nbatch_size = 4\nsave_state = true\n{settings}");
        let place = Place::new(&format!("{DATA}{settings}").replace("\"cpu\"", "\"software\""));
        (place.pipe("run p.toml").start().wait(), place)
    };
    for zero in ["", "zero = 1\n"] {
        let ((code, said), ranks) = with(&format!("ranks = 2\n{zero}"));
        if code != Some(0) && std::env::var("PIPE_REQUIRE_WGPU").as_deref() != Ok("1") {
            said.says(&["no software Vulkan adapter"]);
            eprintln!("SKIPPED: no software Vulkan adapter");
            return;
        }
        assert_eq!(code, Some(0), "{said:?}");
        let log = ranks.pipe("logs p.toml train").ends(0);
        let on = |rank: &str| log.out.lines().find_map(|line| line.strip_prefix(rank)).unwrap().to_owned();
        assert_eq!(on("rank 0"), on("rank 1"));
        assert!(on("rank 1").contains("llvmpipe"), "{}", on("rank 1"));
        let ((code, said), devices) = with(&format!("devices = 2\n{zero}"));
        assert_eq!(code, Some(0), "{said:?}");
        same(&ranks, &devices);
    }
}

#[test]
fn on_a_cluster_a_lost_rank_stops_all_and_a_request_to_stop_has_them_save() {
    let Some(slurm) = Cluster::up() else { return };
    let settings = format!("{LONG}ranks = 2\n{NODES}");
    let (there, here) = (place(&settings), place(&settings));
    let run = slurm.run(&there).start();
    until("some steps are made", || steps(&there) > 30);
    let [pid] = ranks(&there, Some(1))[..] else { panic!("one process is rank 1") };
    assert!(std::process::Command::new("kill").args(["-9", &pid.to_string()]).status().unwrap().success());
    let since = Instant::now();
    let (code, said) = run.wait();
    assert_eq!(code, Some(1), "{said:?}");
    said.says(&["a rank of 2 was lost"]);
    assert!(since.elapsed().as_secs() < 15, "it took {:?}", since.elapsed());
    let run = slurm.run(&there).start();
    until("all ranks are there", || !ranks(&there, Some(1)).is_empty());
    let before = steps(&there);
    until("some more steps are made", || steps(&there) > before + 20);
    run.signal("INT");
    let (code, said) = run.wait();
    assert_eq!(code, Some(75), "{said:?}");
    assert_eq!(ranks(&there, None), Vec::<u32>::new());
    // What is left is made here, from the checkpoint of there.
    there.run();
    there.pipe("logs p.toml train").ends(0).says(&["goes on after step "]);
    here.run();
    same(&there, &here);
}
