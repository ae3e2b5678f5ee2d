package config

import "maps"

// nginxHints are what is said of nginx's words where these settings may stand: in http, in a
// server and in a location.
var nginxHints = map[string]string{
	"proxy_set_header":        "write request_headers: {set: {NAME: VALUE}}; Host is \"host\" of the upstream, and X-Forwarded-For and its like are always sent",
	"add_header":              "write response_headers: {add: {NAME: VALUE}}",
	"proxy_hide_header":       "write response_headers: {remove: [NAME]}",
	"proxy_connect_timeout":   "it is \"connect_timeout\" of the upstream",
	"proxy_send_timeout":      "it is \"send_timeout\" of the upstream",
	"proxy_read_timeout":      "it is \"read_timeout\" of the upstream",
	"proxy_next_upstream":     "it is \"next_upstream\" of the upstream",
	"proxy_http_version":      "servers are spoken to in HTTP/1.1, and in HTTP/2 with http2: true of the upstream",
	"proxy_request_buffering": "it is called \"request_buffering\" here",
	"proxy_intercept_errors":  "it is called \"intercept_errors\" here",
	"proxy_buffering":         "answers are passed on as they come",
	"proxy_redirect":          "what servers say of other addresses is passed on as it is: let them see the client's Host",
	"grpc_pass":               "write upstream, and http2: true in that upstream",
	"fastcgi_pass":            "servers are spoken to in HTTP",
	"limit_req":               "write rate_limit: {rate: 10, burst: 20}",
	"limit_req_zone":          "write rate_limit: {rate: 10, burst: 20}, which needs no zone",
	"limit_conn":              "\"max_conns\" of an upstream bounds what its servers get, and \"max_connections\" of http all clients",
	"error_page":              "error pages are a list under \"error_pages\"",
	"real_ip_header":          "it is X-Forwarded-For, or the PROXY protocol, of those whom \"trusted_proxies\" of http names",
	"auth_basic":              "sluice asks for no passwords",
	"auth_request":            "sluice asks for no passwords",
	"root":                    "sluice serves no files",
	"index":                   "sluice serves no files",
	"alias":                   "sluice serves no files",
	"try_files":               "sluice serves no files",
	"proxy_cache":             "sluice keeps no answers",
	"gzip_types":              "write gzip: {types: [...]}",
	"gzip_min_length":         "write gzip: {min_length: 1k}",
	"gzip_comp_level":         "write gzip: {level: 5}",
}

// withNginxHints adds them to others, which count first.
func withNginxHints(others map[string]string) map[string]string {
	all := maps.Clone(nginxHints)
	maps.Copy(all, others)
	return all
}
