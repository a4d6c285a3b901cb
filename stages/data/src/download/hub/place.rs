//! Where the hub is for this machine, and what it is allowed to see there.
//!
//! The variables are those of `huggingface_hub`. None of them is in a key: they say where things are.

use std::path::PathBuf;

use contract::StageError;

use super::super::http::Token;

/// The hub as this machine reaches it.
pub struct Place {
    /// Its address, without a slash at the end.
    pub endpoint: String,
    /// What lets one into gated repositories.
    pub token: Option<Token>,
    /// The folder that other programs keep the hub's files in.
    pub cache: Option<PathBuf>,
    /// Whether the network must not be used.
    pub offline: bool,
}

/// Variables that say where the hub and its cache are.
pub const VARIABLES: &[&str] = &["HF_ENDPOINT", "HF_HOME", "HF_HUB_CACHE", "HF_HUB_OFFLINE", "HF_TOKEN_PATH"];

/// Variables that carry a secret.
pub const SECRETS: &[&str] = &["HF_TOKEN"];

impl Place {
    /// What the environment says.
    pub fn from_env() -> Result<Self, StageError> {
        Self::from(|name| std::env::var(name).ok().filter(|value| !value.is_empty()))
    }

    /// What `variable` says.
    pub fn from(variable: impl Fn(&str) -> Option<String>) -> Result<Self, StageError> {
        let endpoint = variable("HF_ENDPOINT").unwrap_or_else(|| "https://huggingface.co".to_owned());
        let endpoint = endpoint.trim_end_matches('/').to_owned();
        let host = endpoint.strip_prefix("https://").or_else(|| endpoint.strip_prefix("http://"));
        match host {
            Some(host) if !host.is_empty() && !host.contains(['@', '?', '#', ' ']) => {}
            // It may hold a password, so it is not repeated.
            _ => {
                return Err(StageError::new("`HF_ENDPOINT` is no address of a hub")
                    .hint("it must be of the form `https://host`, without a login"));
            }
        }
        let home = variable("HF_HOME").map(PathBuf::from).or_else(|| {
            let cache = variable("XDG_CACHE_HOME").map(PathBuf::from);
            let cache = cache.or_else(|| Some(PathBuf::from(variable("HOME")?).join(".cache")));
            Some(cache?.join("huggingface"))
        });
        let cache = variable("HF_HUB_CACHE")
            .map(PathBuf::from)
            .or_else(|| home.as_ref().map(|home| home.join("hub")));
        let file = variable("HF_TOKEN_PATH").map(PathBuf::from).or_else(|| Some(home?.join("token")));
        let token = variable("HF_TOKEN").or_else(|| std::fs::read_to_string(file?).ok());
        let token = token.as_deref().and_then(Token::new);
        let offline = variable("HF_HUB_OFFLINE")
            .is_some_and(|value| ["1", "true", "yes", "on"].contains(&value.to_ascii_lowercase().as_str()));
        Ok(Self { endpoint, token, cache, offline })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(variables: &[(&str, &str)]) -> Result<Place, StageError> {
        let find =
            |name: &str| variables.iter().find(|(key, _)| *key == name).map(|(_, value)| (*value).to_owned());
        Place::from(find)
    }

    #[test]
    fn the_cache_and_the_token_are_where_hugging_face_puts_them() {
        let home = tempfile::tempdir().unwrap();
        let hf = home.path().join(".cache/huggingface");
        std::fs::create_dir_all(&hf).unwrap();
        std::fs::write(hf.join("token"), "hf_file\n").unwrap();
        let at = home.path().to_str().unwrap();
        let found = place(&[("HOME", at)]).unwrap();
        assert_eq!(found.endpoint, "https://huggingface.co");
        assert_eq!(found.cache, Some(hf.join("hub")));
        assert!(found.token.is_some() && !found.offline);
        let found = place(&[
            ("HF_ENDPOINT", "http://127.0.0.1:9/"),
            ("HF_HUB_CACHE", "/c"),
            ("HF_HUB_OFFLINE", "True"),
        ])
        .unwrap();
        assert_eq!((found.endpoint.as_str(), found.cache), ("http://127.0.0.1:9", Some("/c".into())));
        assert!(found.token.is_none() && found.offline);
    }

    #[test]
    fn an_endpoint_with_a_login_is_refused_and_not_repeated() {
        for endpoint in ["https://user:geheim@hub", "ftp://hub", "hub", "https://"] {
            let error = place(&[("HF_ENDPOINT", endpoint)]).err().unwrap();
            assert!(error.message.contains("HF_ENDPOINT") && !error.message.contains("geheim"), "{error}");
        }
    }
}
