//! What an answer says about the bytes that follow.

use ureq::Body;
use ureq::http::Response;

/// What `Content-Length` says.
pub fn length(response: &Response<Body>) -> Option<u64> {
    response.headers().get("content-length")?.to_str().ok()?.parse().ok()
}

/// Start and total of `Content-Range: bytes START-END/TOTAL`.
pub fn content_range(response: &Response<Body>) -> Option<(u64, Option<u64>)> {
    let header = response.headers().get("content-range")?.to_str().ok()?;
    let (start, _) = header.strip_prefix("bytes ")?.split_once('-')?;
    Some((start.parse().ok()?, content_range_total(response)))
}

/// Total of `Content-Range: bytes …/TOTAL`.
pub fn content_range_total(response: &Response<Body>) -> Option<u64> {
    response.headers().get("content-range")?.to_str().ok()?.rsplit_once('/')?.1.parse().ok()
}
