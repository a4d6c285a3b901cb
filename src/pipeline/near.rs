//! The near miss: what was probably meant.

/// `did you mean …?` for the closest of `known`, if any is close.
pub fn did_you_mean<'a>(name: &str, known: impl IntoIterator<Item = &'a str>) -> Option<String> {
    nearest(name, known).map(|known| format!("did you mean `{known}`?"))
}

/// The closest of `known`: every third letter may differ; two swapped neighbours count as one.
/// Numbers are never near each other. Else the only one that has `name` as one of its words.
pub fn nearest<'a>(name: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let known: Vec<&str> = known.into_iter().collect();
    misspelt(name, &known).or_else(|| {
        let mut longer =
            known.iter().filter(|known| name.len() > 1 && known.split(['_', '-']).any(|word| word == name));
        longer.next().filter(|_| longer.next().is_none()).copied()
    })
}

fn misspelt<'a>(name: &str, known: &[&'a str]) -> Option<&'a str> {
    let lower = name.to_lowercase();
    let limit = if name.parse::<f64>().is_ok() { 0 } else { (name.chars().count() + 1) / 3 };
    known
        .iter()
        .copied()
        .filter(|known| known.len().abs_diff(name.len()) <= limit)
        .map(|known| (strsim::damerau_levenshtein(&lower, &known.to_lowercase()), known))
        .filter(|&(distance, _)| distance <= limit)
        .min_by_key(|&(distance, _)| distance)
        .map(|(_, known)| known)
}

/// `` `a`, `b`, `c` ``
pub fn list<'a>(names: impl IntoIterator<Item = &'a str>) -> String {
    names.into_iter().map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn swapped_letters_are_near_and_other_words_are_not() {
        assert_eq!(nearest("rnak", ["rank", "alpha"]), Some("rank"));
        assert_eq!(nearest("Rank", ["rank"]), Some("rank"));
        assert_eq!(nearest("learning", ["lr", "rank"]), None);
        assert_eq!(nearest("x", ["rank", "y"]), None);
        assert_eq!(nearest("std", ["seed", "init_std"]), Some("init_std"));
        assert_eq!(nearest("size", ["hidden_size", "vocab_size"]), None);
        assert_eq!(nearest("16", ["8", "15"]), None);
    }
}
