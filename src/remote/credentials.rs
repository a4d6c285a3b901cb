//! Who we are for an S3 server, as the AWS tools read it: the environment first, then the profile
//! (`AWS_PROFILE`, else `default`) in `~/.aws/credentials` and `~/.aws/config`. What is in none of them (roles
//! of a machine or a container) the client asks for itself. Nothing here is ever told.

use std::collections::BTreeMap;
use std::path::PathBuf;

use configparser::ini::Ini;

/// What a profile may set.
const KEYS: [&str; 5] =
    ["aws_access_key_id", "aws_secret_access_key", "aws_session_token", "region", "endpoint_url"];

/// Settings by the names that the environment has, in small letters.
pub fn settings() -> BTreeMap<String, String> {
    let environment = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
    let home = environment("HOME").map(PathBuf::from).unwrap_or_default().join(".aws");
    let file = |name: &str, usual: &str| {
        let path = environment(name).map_or_else(|| home.join(usual), PathBuf::from);
        std::fs::read_to_string(path).unwrap_or_default()
    };
    let profile = environment("AWS_PROFILE").unwrap_or_else(|| "default".to_owned());
    let mut settings = of_profile(
        &profile,
        &file("AWS_CONFIG_FILE", "config"),
        &file("AWS_SHARED_CREDENTIALS_FILE", "credentials"),
    );
    let given: Vec<(String, String)> = std::env::vars()
        .filter(|(name, value)| name.starts_with("AWS_") && !value.is_empty())
        .map(|(name, value)| (name.to_ascii_lowercase(), value))
        .collect();
    // A key of the environment does not go with a secret of a file.
    if given.iter().any(|(name, _)| name == KEYS[0]) {
        settings.retain(|name, _| !KEYS[..3].contains(&name.as_str()));
    }
    settings.extend(given);
    if !settings.contains_key("aws_region")
        && let Some(region) = settings.get("aws_default_region").cloned()
    {
        settings.insert("aws_region".to_owned(), region);
    }
    settings
}

/// What the two files say of a profile, the second one before the first.
fn of_profile(profile: &str, config: &str, credentials: &str) -> BTreeMap<String, String> {
    let mut settings = BTreeMap::new();
    let section = if profile == "default" { profile.to_owned() } else { format!("profile {profile}") };
    for (text, section) in [(config, section.as_str()), (credentials, profile)] {
        let mut ini = Ini::new_cs();
        // A secret may hold what begins a comment elsewhere.
        ini.set_inline_comment_symbols(Some(&[]));
        // A file that is no such file says nothing; the server then does.
        if ini.read(text.to_owned()).is_err() {
            continue;
        }
        for key in KEYS {
            if let Some(value) = ini.get(section, key) {
                let name = if key.starts_with("aws_") { key.to_owned() } else { format!("aws_{key}") };
                settings.insert(name, value);
            }
        }
    }
    settings
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_profile_is_read_from_both_files() {
        let config = "[default]\nregion = eu-central-1\n[profile lab]\nregion=us-west-2\nendpoint_url = http://lab:9000\n";
        let credentials = "[default]\naws_access_key_id = A\naws_secret_access_key = a/b+c==\n\n[lab]\naws_access_key_id = L\naws_secret_access_key=l#;l\n";
        let default = of_profile("default", config, credentials);
        assert_eq!(default["aws_region"], "eu-central-1");
        assert_eq!(
            (default["aws_access_key_id"].as_str(), default["aws_secret_access_key"].as_str()),
            ("A", "a/b+c==")
        );
        let lab = of_profile("lab", config, credentials);
        assert_eq!(lab["aws_endpoint_url"], "http://lab:9000");
        assert_eq!((lab["aws_access_key_id"].as_str(), lab["aws_secret_access_key"].as_str()), ("L", "l#;l"));
        assert_eq!(of_profile("nobody", config, credentials), BTreeMap::new());
        assert_eq!(of_profile("default", "[[[", ""), BTreeMap::new());
    }
}
