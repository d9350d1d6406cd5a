pub fn path(name: &str) -> &'static str {
    if name.starts_with("timber-") { "/index" } else { "/" }
}
pub async fn build_missing(
    _e: &crate::engine::Engine,
    _rebuild: bool,
) -> anyhow::Result<Vec<crate::compare::Subject>> {
    ["timber-workshop:hug", "timber-tutorial:1", "timber-tutorial:2"].iter().map(|n| n.parse()).collect()
}
pub fn notes(_name: &str, _image: &bollard::models::ImageInspect) -> Vec<String> {
    Vec::new()
}
