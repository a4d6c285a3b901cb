//! Names and bytes elsewhere: a bucket of an S3 server, or a folder. The only file that names
//! `object_store`, and the only one in which anything is asynchronous.
//!
//! All calls wait for their end, from whatever thread; what they ask for goes out side by side, at most
//! [`AT_ONCE`] requests at a time for all threads together, and fewer where much is in each. It knows nothing of keys or objects.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::{Either, select};
use futures_util::{StreamExt, TryStreamExt, stream};
use object_store::aws::{AmazonS3Builder, AmazonS3ConfigKey};
use object_store::local::LocalFileSystem;
use object_store::path::Path as Name;
use object_store::{
    BackoffConfig, ClientOptions, ObjectStore, ObjectStoreExt, PutPayload, RetryConfig, WriteMultipart,
};
use tokio::runtime::Runtime;
use tokio::sync::Semaphore;

use super::credentials;
use crate::error::{Error, Exit, io_at};
use crate::executor::Stop;

/// Requests under way at a time: many, since a small answer is all waiting.
pub const AT_ONCE: usize = 256;

/// How many threads read and write where the place is a folder: a disk is not far away.
const FOLDER_READS: usize = 32;

/// For how many small requests one that carries [`PART`] counts; it is kept in memory.
const LARGE: u64 = 4;

/// What one request carries at most; a larger file goes in parts.
const PART: u64 = 16 << 20;

/// S3 takes ten thousand parts of a file.
const MOST_PARTS: u64 = 9_000;

/// How long a request for one part may take if `PIPE_REMOTE_TIMEOUT` says nothing.
const PATIENCE: Duration = Duration::from_secs(60);

/// A place elsewhere.
pub struct Bucket {
    runtime: Runtime,
    store: Arc<dyn ObjectStore>,
    prefix: Name,
    permits: Semaphore,
    url: String,
    stop: Arc<Stop>,
}

/// A file to fetch.
#[derive(Clone, Debug)]
pub struct Wanted {
    /// What it is called there.
    pub name: String,
    /// Where it is to lie here.
    pub path: PathBuf,
    /// How many bytes it must have.
    pub size: u64,
}

/// Why something was not done.
#[derive(Debug)]
pub enum Fault {
    /// It is not there, or is not what it must be.
    Damaged(String),
    /// The other side said no.
    Denied(String),
    /// The other side cannot be reached, or is out of order.
    Unreachable(String),
    /// This side failed.
    Here(Error),
}

impl From<Error> for Fault {
    fn from(error: Error) -> Self {
        Self::Here(error)
    }
}

impl Bucket {
    /// Opens what `s3://BUCKET/PREFIX` or `file:///FOLDER` names. Asks nobody. Waits end early once `stop` is
    /// asked: for what is fetched the first time, for what is sent the second.
    ///
    /// # Errors
    /// If the address is none of these, or the folder is not there.
    pub fn open(url: &str, stop: Arc<Stop>) -> Result<Self, Error> {
        let (store, prefix) = match url.split_once("://") {
            Some(("file", path)) if path.starts_with('/') => (folder(Path::new(path))?, ""),
            Some(("s3", rest)) => {
                let (bucket, prefix) = rest.split_once('/').unwrap_or((rest, ""));
                (s3(bucket)?, prefix)
            }
            _ => {
                return Err(Error::usage(format!("the remote `{url}` cannot be used"))
                    .hint("write `s3://BUCKET/PREFIX` or `file:///FOLDER`"));
            }
        };
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .max_blocking_threads(FOLDER_READS)
            .enable_all()
            .build();
        let runtime = runtime.map_err(|error| {
            Error::new(Exit::Failed, format!("cannot start threads for a remote: {error}"))
        })?;
        let prefix = Name::parse(prefix.trim_matches('/'))
            .map_err(|error| Error::usage(format!("the remote `{url}` cannot be used: {error}")))?;
        Ok(Self { runtime, store, prefix, permits: Semaphore::new(AT_ONCE), url: url.to_owned(), stop })
    }

    /// Its address.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// Waits for `work`, or until `given_up`.
    fn wait<T>(
        &self,
        given_up: fn(&Stop) -> bool,
        work: impl Future<Output = Result<T, Fault>>,
    ) -> Result<T, Fault> {
        let stopped = async {
            while !given_up(&self.stop) {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        };
        self.runtime.block_on(async {
            match select(pin!(work), pin!(stopped)).await {
                Either::Left((outcome, _)) => outcome,
                Either::Right(_) => Err(Fault::Unreachable("the run was asked to stop".to_owned())),
            }
        })
    }

    fn name(&self, name: &str) -> Name {
        name.split('/').fold(self.prefix.clone(), |path, part| path.join(part))
    }

    /// What is called `name`; `None` if nothing is.
    pub fn get(&self, name: &str) -> Result<Option<Vec<u8>>, Fault> {
        let name = self.name(name);
        self.wait(Stop::asked, async {
            let _permit = self.permits.acquire().await;
            match async { self.store.get(&name).await?.bytes().await }.await {
                Ok(bytes) => Ok(Some(bytes.to_vec())),
                Err(object_store::Error::NotFound { .. }) => Ok(None),
                Err(error) => Err(fault(error)),
            }
        })
    }

    /// Makes `name` hold these bytes, at once.
    pub fn put(&self, name: &str, bytes: Vec<u8>) -> Result<(), Fault> {
        let name = self.name(name);
        self.wait(Stop::urgent, async {
            let _permit = self.permits.acquire().await;
            self.store.put(&name, PutPayload::from(bytes)).await.map(drop).map_err(fault)
        })
    }

    /// How large these are; `None` for what is not there.
    pub fn sizes(&self, names: &[String]) -> Result<Vec<Option<u64>>, Fault> {
        let size = async |name: &String| {
            let _permit = self.permits.acquire().await;
            match self.store.head(&self.name(name)).await {
                Ok(meta) => Ok(Some(meta.size)),
                Err(object_store::Error::NotFound { .. }) => Ok(None),
                Err(error) => Err(fault(error)),
            }
        };
        self.wait(Stop::urgent, stream::iter(names).map(size).buffered(AT_ONCE).try_collect())
    }

    /// Fetches files. What cannot be had whole leaves what was fetched so far lying.
    pub fn download(&self, wanted: &[Wanted]) -> Result<(), Fault> {
        let mut parts = Vec::new();
        for file in wanted {
            let handle = File::create_new(&file.path).map_err(io_at(&file.path))?;
            let handle = Arc::new(handle);
            let starts = (0..file.size.div_ceil(PART).max(1)).map(|number| number * PART);
            parts.extend(starts.map(|start| (file, Arc::clone(&handle), start)));
        }
        let fetch = async |(file, handle, start): (&Wanted, Arc<File>, u64)| {
            let _permit = self.permits.acquire_many(weight(file.size - start)).await;
            let name = self.name(&file.name);
            let bytes = if file.size <= PART {
                // Without a range, so that a file that is too long is seen as well.
                self.store.get(&name).await.map_err(fault)?.bytes().await.map_err(fault)?
            } else {
                let range = start..(start + PART).min(file.size);
                self.store.get_range(&name, range).await.map_err(fault)?
            };
            if bytes.len() as u64 != (file.size - start).min(PART) {
                let message = format!("`{}` has another size than it must", file.name);
                return Err(Fault::Damaged(message));
            }
            handle.write_all_at(&bytes, start).map_err(io_at(&file.path))?;
            Ok(())
        };
        self.wait(Stop::asked, stream::iter(parts).map(fetch).buffer_unordered(AT_ONCE).try_collect())
    }

    /// Sends files: (where it lies here, what it is called there). A name holds the whole file or nothing new.
    pub fn upload(&self, files: &[(PathBuf, String)]) -> Result<(), Fault> {
        let send = async |(path, name): &(PathBuf, String)| {
            let size = std::fs::metadata(path).map_or(0, |meta| meta.len());
            let _permit = self.permits.acquire_many(weight(size)).await;
            self.send(path, &self.name(name)).await
        };
        self.wait(Stop::urgent, stream::iter(files).map(send).buffer_unordered(AT_ONCE).try_collect())
    }

    async fn send(&self, path: &Path, name: &Name) -> Result<(), Fault> {
        let size = std::fs::metadata(path).map_err(io_at(path))?.len();
        if size <= PART {
            let bytes = std::fs::read(path).map_err(io_at(path))?;
            return self.store.put(name, PutPayload::from(bytes)).await.map(drop).map_err(fault);
        }
        const SIDE_BY_SIDE: usize = 4;
        let file = File::open(path).map_err(io_at(path))?;
        let part = usize::try_from(PART.max(size.div_ceil(MOST_PARTS))).unwrap_or(usize::MAX);
        let upload = self.store.put_multipart(name).await.map_err(fault)?;
        let mut upload = WriteMultipart::new_with_chunk_size(upload, part);
        let mut sent = 0;
        while sent < size {
            if let Err(error) = upload.wait_for_capacity(SIDE_BY_SIDE).await {
                // What was sent of it takes up room there; that it is gone is as good as can be had.
                let _ = upload.abort().await;
                return Err(fault(error));
            }
            let mut bytes = vec![0; part.min(usize::try_from(size - sent).unwrap_or(part))];
            if let Err(error) = file.read_exact_at(&mut bytes, sent) {
                let _ = upload.abort().await;
                return Err(Error::io(path, &error).into());
            }
            sent += bytes.len() as u64;
            upload.put(bytes.into());
        }
        upload.finish().await.map(drop).map_err(fault)
    }
}

/// A folder, made where its own folder is there: a disk that is not mounted is told, not filled.
fn folder(path: &Path) -> Result<Arc<dyn ObjectStore>, Error> {
    if !path.is_dir() {
        std::fs::create_dir(path).map_err(io_at(path))?;
    }
    let store = LocalFileSystem::new_with_prefix(path)
        .map_err(|error| Error::new(Exit::Failed, format!("`{}`: {error}", path.display())))?;
    Ok(Arc::new(store))
}

/// Of how many small requests' share one that carries `bytes` takes up.
fn weight(bytes: u64) -> u32 {
    u32::try_from(1 + bytes.min(PART) * (LARGE - 1) / PART).unwrap_or(1)
}

/// A bucket, by what the environment and the files of the AWS tools say.
fn s3(bucket: &str) -> Result<Arc<dyn ObjectStore>, Error> {
    // A second call is no harm: whoever was first has set the same.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let patience = match std::env::var("PIPE_REMOTE_TIMEOUT") {
        Ok(text) => crate::pipeline::duration(&text)
            .map_err(|error| Error::usage(format!("`PIPE_REMOTE_TIMEOUT`: {error}")))?,
        Err(_) => PATIENCE,
    };
    let mut builder = AmazonS3Builder::new();
    for (name, value) in credentials::settings() {
        if let Ok(key) = name.parse::<AmazonS3ConfigKey>() {
            builder = builder.with_config(key, value);
        }
    }
    let plain = builder.get_config_value(&AmazonS3ConfigKey::Endpoint);
    let plain = plain.or_else(|| builder.get_config_value(&AmazonS3ConfigKey::S3Endpoint));
    let client = ClientOptions::new()
        .with_timeout(patience)
        .with_connect_timeout(patience.min(Duration::from_secs(5)))
        .with_allow_http(plain.is_some_and(|url| url.starts_with("http://")));
    let retry = RetryConfig {
        backoff: BackoffConfig { max_backoff: Duration::from_secs(5), ..BackoffConfig::default() },
        max_retries: 4,
        retry_timeout: patience.saturating_mul(2),
    };
    let store = builder.with_bucket_name(bucket).with_client_options(client).with_retry(retry).build();
    let store =
        store.map_err(|error| Error::usage(format!("the remote `s3://{bucket}` cannot be used: {error}")))?;
    Ok(Arc::new(store))
}

/// What went wrong, without what a server put into its answer but for its own words.
fn fault(error: object_store::Error) -> Fault {
    use object_store::Error as Other;
    match error {
        Other::NotFound { path, .. } => Fault::Damaged(format!("`{path}` is not there")),
        Other::PermissionDenied { path, .. } => Fault::Denied(format!("no right to `{path}`")),
        Other::Unauthenticated { path, .. } => Fault::Denied(format!("not known there, for `{path}`")),
        error => {
            let mut message = String::new();
            let mut cause: Option<&dyn std::error::Error> = Some(&error);
            while let Some(error) = cause {
                message = error.to_string();
                cause = error.source();
            }
            Fault::Unreachable(message)
        }
    }
}
