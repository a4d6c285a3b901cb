//! What a stage asks for, as options of `sbatch`.

use std::path::Path;
use std::time::Duration;

use crate::pipeline::Resources;

/// How long before the end of its time a job is told, at most.
const LEAD: Duration = Duration::from_secs(120);

/// What Slurm is asked for.
pub fn options(resources: &Resources, ranks: usize) -> Vec<String> {
    let mut options = Vec::new();
    let mut add = |name: &str, value: Option<String>| {
        options.extend(value.map(|value| format!("--{name}={value}")));
    };
    add("nodes", resources.nodes.map(|count| count.to_string()));
    add("ntasks", Some(ranks).filter(|&ranks| ranks > 1).map(|count| count.to_string()));
    add("cpus-per-task", resources.cpus.map(|count| count.to_string()));
    add("gpus", resources.gpus.map(|count| count.to_string()));
    add("mem", resources.memory.map(|bytes| format!("{}M", bytes.div_ceil(1 << 20))));
    add("time", resources.time.map(time));
    add("partition", resources.slurm.partition.clone());
    add("account", resources.slurm.account.clone());
    let lead = resources.time.map_or(LEAD, |time| LEAD.min(time / 2)).as_secs().max(1);
    add("signal", Some(format!("B:USR1@{lead}")));
    options.push("--requeue".to_owned());
    options.extend(resources.slurm.extra.iter().cloned());
    options
}

/// Days-hours:minutes:seconds.
fn time(time: Duration) -> String {
    let seconds = time.as_secs().max(1);
    let (days, hours) = (seconds / 86_400, seconds / 3600 % 24);
    format!("{days}-{hours:02}:{:02}:{:02}", seconds / 60 % 60, seconds % 60)
}

/// The script that a node runs. It becomes the program, so that signals to the script reach it.
pub fn script(program: &Path, job: &Path, folder: &Path) -> String {
    let quoted = |path: &Path| format!("'{}'", path.display().to_string().replace('\'', r"'\''"));
    format!("#!/bin/sh\nexec {} exec-stage {} --node {}\n", quoted(program), quoted(job), quoted(folder))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pipeline::Slurm;

    #[test]
    fn all_that_is_asked_for_reaches_sbatch() {
        let resources = Resources {
            cpus: Some(4),
            memory: Some(2_000_000_000),
            gpus: Some(2),
            nodes: Some(1),
            time: Some(Duration::from_secs(93_784)),
            slurm: Slurm {
                partition: Some("p".into()),
                account: Some("x".into()),
                extra: vec!["--qos=long".into()],
            },
        };
        assert_eq!(
            options(&resources, 1).join(" "),
            "--nodes=1 --cpus-per-task=4 --gpus=2 --mem=1908M --time=1-02:03:04 --partition=p --account=x \
             --signal=B:USR1@120 --requeue --qos=long"
        );
        assert_eq!(options(&Resources::default(), 1).join(" "), "--signal=B:USR1@120 --requeue");
        assert_eq!(options(&Resources::default(), 4).join(" "), "--ntasks=4 --signal=B:USR1@120 --requeue");
        let short = Resources { time: Some(Duration::from_secs(90)), ..Resources::default() };
        assert_eq!(options(&short, 1).join(" "), "--time=0-00:01:30 --signal=B:USR1@45 --requeue");
    }

    #[test]
    fn a_path_with_a_quote_stays_one_word() {
        let script = script(Path::new("/a b/pipe"), Path::new("/it's"), Path::new("/f"));
        assert_eq!(script, "#!/bin/sh\nexec '/a b/pipe' exec-stage '/it'\\''s' --node '/f'\n");
    }
}
