//! Runs that differ in nothing but their seed, as one arm: mean and standard deviation over seeds.
//!
//! Runs are known by their labels (matrix values joined with `,`) and the seed that each trained with. It
//! knows nothing of weights.

use serde::Serialize;

/// An arm that was trained with several seeds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Arm {
    /// The runs' label without the seed; `all` where there is nothing else in it.
    pub name: String,
    /// The labels of its runs.
    pub labels: Vec<String>,
    /// Their seeds.
    pub seeds: Vec<u64>,
}

/// A figure over seeds.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Spread {
    /// How many seeds have it.
    pub n: usize,
    /// Their mean.
    pub mean: f64,
    /// The standard deviation of the sample (n − 1); none of a single one.
    pub deviation: Option<f64>,
}

/// The arms with more than one seed among runs of `(label, seed)`. The seed's axis is the last one whose
/// value is each run's own seed; where there is none, nothing is an arm.
pub fn arms<'a>(runs: impl IntoIterator<Item = (&'a str, u64)>) -> Vec<Arm> {
    let runs: Vec<(&str, Vec<&str>, u64)> =
        runs.into_iter().map(|(label, seed)| (label, label.split(',').collect(), seed)).collect();
    let Some(axes) = runs.first().map(|(_, values, _)| values.len()) else { return Vec::new() };
    let is_seed = |axis: &usize| runs.iter().all(|(_, values, seed)| values[*axis] == seed.to_string());
    if runs.iter().any(|(_, values, _)| values.len() != axes) {
        return Vec::new();
    }
    let Some(axis) = (0..axes).rev().find(is_seed) else { return Vec::new() };
    let mut arms: Vec<Arm> = Vec::new();
    for (label, mut values, seed) in runs {
        values.remove(axis);
        let name = if values.is_empty() { "all".to_owned() } else { values.join(",") };
        match arms.iter_mut().find(|arm| arm.name == name) {
            Some(arm) => {
                arm.labels.push(label.to_owned());
                arm.seeds.push(seed);
            }
            None => arms.push(Arm { name, labels: vec![label.to_owned()], seeds: vec![seed] }),
        }
    }
    arms.retain(|arm| arm.labels.len() > 1);
    arms
}

/// Mean and deviation of what is there; none of nothing.
pub fn spread(values: impl IntoIterator<Item = f64>) -> Option<Spread> {
    let values: Vec<f64> = values.into_iter().collect();
    let n = values.len();
    let mean = values.iter().sum::<f64>() / n as f64;
    let squares: f64 = values.iter().map(|value| (value - mean).powi(2)).sum();
    (n > 0).then(|| Spread { n, mean, deviation: (n > 1).then(|| (squares / (n as f64 - 1.0)).sqrt()) })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn arm(name: &str, labels: &[&str], seeds: &[u64]) -> Arm {
        let labels = labels.iter().map(|&label| label.to_owned()).collect();
        Arm { name: name.into(), labels, seeds: seeds.to_vec() }
    }

    #[test]
    fn runs_that_differ_in_their_seed_alone_are_one_arm() {
        let found =
            arms([("lora,8,1", 1), ("lora,8,8", 8), ("dora,8,1", 1), ("dora,8,8", 8), ("full,0,1", 1)]);
        let wanted = [
            arm("lora,8", &["lora,8,1", "lora,8,8"], &[1, 8]),
            arm("dora,8", &["dora,8,1", "dora,8,8"], &[1, 8]),
        ];
        assert_eq!(found, wanted);
        assert_eq!(arms([("1", 1), ("2", 2)]), [arm("all", &["1", "2"], &[1, 2])]);
    }

    #[test]
    fn where_no_axis_is_the_seed_there_are_no_arms() {
        assert_eq!(arms([("lora,8", 42), ("lora,16", 42)]), []);
        assert_eq!(arms([("lora", 1), ("lora,2", 2)]), []);
        assert_eq!(arms([]), []);
    }

    #[test]
    fn the_spread_by_hand() {
        assert_eq!(spread([1.0, 2.0, 4.0]).unwrap().mean, 7.0 / 3.0);
        assert_eq!(spread([1.0, 3.0]), Some(Spread { n: 2, mean: 2.0, deviation: Some(2.0_f64.sqrt()) }));
        assert_eq!(spread([5.0]), Some(Spread { n: 1, mean: 5.0, deviation: None }));
        assert_eq!(spread([]), None);
    }
}
